package cli

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
)

// address is where a master listens or is reached.
type address struct {
	Net  string // "unix" or "tcp"
	Path string // unix
	Host string // tcp; empty is every interface
	Port uint16
}

// parseAddress reads unix!PATH, tcp!HOST!PORT, a path that begins with / or .,
// and HOST:PORT.
func parseAddress(s string) (address, error) {
	bad := func(why string) (address, error) {
		return address{}, &problem{Thing: s, Err: errors.New(why), Remedy: "an address is unix!PATH, tcp!HOST!PORT, a path that begins with / or ./, or HOST:PORT", Code: exitUsage}
	}
	kind, rest, bang := strings.Cut(s, "!")
	switch {
	case bang && kind == "unix":
		if rest == "" {
			return bad("has no path")
		}
		return address{Net: "unix", Path: rest}, nil
	case bang && kind == "tcp":
		i := strings.LastIndexByte(rest, '!')
		if i < 0 {
			return bad("has no port")
		}
		return tcpAddress(rest[:i], rest[i+1:], bad)
	case strings.HasPrefix(s, "/"), strings.HasPrefix(s, "./"), strings.HasPrefix(s, "../"), s == ".", s == "..":
		return address{Net: "unix", Path: s}, nil
	case bang:
		return bad("names no transport that is known")
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return bad("is no address")
	}
	return tcpAddress(host, port, bad)
}

func tcpAddress(host, port string, bad func(string) (address, error)) (address, error) {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return bad(fmt.Sprintf("%q is not a port", port))
	}
	if host == "*" {
		host = ""
	}
	return address{Net: "tcp", Host: strings.Trim(host, "[]"), Port: uint16(n)}, nil
}

// String is the form with exclamation marks, which parseAddress reads.
func (a address) String() string {
	if a.Net == "unix" {
		return "unix!" + a.Path
	}
	host := a.Host
	if host == "" {
		host = "*"
	}
	return fmt.Sprintf("tcp!%s!%d", host, a.Port)
}

// dial is what package net calls the address.
func (a address) dial() string {
	if a.Net == "unix" {
		return a.Path
	}
	return net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port)))
}

// loopback says whether only this machine reaches a. A name counts when all
// its addresses do.
func (a address) loopback() bool {
	if a.Net == "unix" {
		return true
	}
	if ip := net.ParseIP(a.Host); ip != nil {
		return ip.IsLoopback()
	}
	if a.Host == "" {
		return false
	}
	ips, err := net.LookupIP(a.Host)
	for _, ip := range ips {
		if !ip.IsLoopback() {
			return false
		}
	}
	return err == nil && len(ips) > 0
}

// addressOf is the address a listener got.
func addressOf(l net.Addr) address {
	if t, ok := l.(*net.TCPAddr); ok {
		host := t.IP.String()
		if t.IP.IsUnspecified() {
			host = ""
		}
		return address{Net: "tcp", Host: host, Port: uint16(t.Port)}
	}
	path := l.String()
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	return address{Net: "unix", Path: path}
}

// kernelMount is the line with which the kernel's own client mounts a at mnt.
func (a address) kernelMount(mnt string) string {
	const common = "version=9p2000.L,msize=1048576,access=user"
	if a.Net == "unix" {
		return fmt.Sprintf("mount -t 9p -o trans=unix,%s %s %s", common, shellQuote(a.Path), shellQuote(mnt))
	}
	host := a.Host
	if host == "" {
		host = "HOST"
	}
	return fmt.Sprintf("mount -t 9p -o trans=tcp,port=%d,%s %s %s", a.Port, common, host, shellQuote(mnt))
}

// shellQuote makes s one word of a shell.
func shellQuote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+,:@%=", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
