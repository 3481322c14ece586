package wire

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// ErrAddr is wrapped by what ParseAddr refuses.
var ErrAddr = errors.New("not a 9P address")

// DefaultPort is 9P's port over TCP (IANA's 9pfs), meant where none is given.
const DefaultPort = 564

// maxUnixPath is what a sockaddr_un holds with its closing NUL (unix(7)).
const maxUnixPath = 107

// Addr is where a 9P server listens.
type Addr struct {
	Net  string // "unix" or "tcp"
	Path string // unix: a socket's path; "@name" is Linux's abstract name space
	Host string // tcp: a name or number; empty: every address of this host
	Port uint16 // tcp; 0: one the kernel picks, for listeners
}

// ParseAddr reads an address in one of the forms
//
//	unix!PATH    /PATH    ./PATH    ../PATH
//	tcp!HOST!PORT    tcp!HOST    HOST:PORT    [IPV6]:PORT
//
// where HOST may be empty or "*" to listen on every address, and PORT is a
// number (default DefaultPort).
func ParseAddr(s string) (Addr, error) {
	bad := func(why string) (Addr, error) { return Addr{}, fmt.Errorf("%q: %w: %s", s, ErrAddr, why) }
	if strings.IndexByte(s, 0) >= 0 {
		return bad("it holds a NUL")
	}
	if path, ok := strings.CutPrefix(s, "unix!"); ok {
		return unixAddr(path, bad)
	}
	if rest, ok := strings.CutPrefix(s, "tcp!"); ok {
		host, port, ok := strings.Cut(rest, "!")
		if !ok {
			port = strconv.Itoa(DefaultPort)
		}
		return tcpAddr(host, port, bad)
	}
	if isPath(s) {
		return unixAddr(s, bad)
	}
	if network, _, ok := strings.Cut(s, "!"); ok {
		return bad(fmt.Sprintf("network %q is not known (unix, tcp are)", network))
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return bad("want unix!PATH, tcp!HOST!PORT, /PATH, ./PATH or HOST:PORT")
	}
	return tcpAddr(host, port, bad)
}

func isPath(s string) bool {
	return strings.HasPrefix(s, "/") || strings.HasPrefix(s, "./") || strings.HasPrefix(s, "../")
}

func unixAddr(path string, bad func(string) (Addr, error)) (Addr, error) {
	switch {
	case path == "" || path == "@":
		return bad("no path")
	case len(path) > maxUnixPath:
		return bad(fmt.Sprintf("a socket's path has at most %d bytes", maxUnixPath))
	}
	return Addr{Net: "unix", Path: path}, nil
}

func tcpAddr(host, port string, bad func(string) (Addr, error)) (Addr, error) {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return bad(fmt.Sprintf("port %q is not a number below 65536", port))
	}
	if host == "*" {
		host = ""
	}
	if strings.ContainsAny(host, "!/[] \t\r\n") {
		return bad(fmt.Sprintf("%q is not a host", host))
	}
	return Addr{Net: "tcp", Host: host, Port: uint16(n)}, nil
}

// AddrOf is the Addr of a net.Addr; ok is false for other networks.
func AddrOf(a net.Addr) (addr Addr, ok bool) {
	switch a := a.(type) {
	case *net.UnixAddr:
		return Addr{Net: "unix", Path: a.Name}, a.Name != ""
	case *net.TCPAddr:
		host := ""
		if !a.IP.IsUnspecified() && a.IP != nil {
			host = (&net.IPAddr{IP: a.IP, Zone: a.Zone}).String()
		}
		return Addr{Net: "tcp", Host: host, Port: uint16(a.Port)}, true
	}
	return Addr{}, false
}

// String is the address in the form that ParseAddr takes first.
func (a Addr) String() string {
	if a.Net == "unix" {
		return "unix!" + a.Path
	}
	return fmt.Sprintf("%s!%s!%d", a.Net, a.Host, a.Port)
}

// Dial is the address as net.Dial and net.Listen take it, behind Net.
func (a Addr) Dial() string {
	if a.Net == "unix" {
		return a.Path
	}
	return net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port)))
}
