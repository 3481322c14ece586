package wire_test

import (
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/mezzofs/mezzo/p9srv/wire"
)

func TestParseAddr(t *testing.T) {
	long := strings.Repeat("x", 108)
	for _, c := range []struct {
		in   string
		want wire.Addr // Net empty: an error
		dial string
	}{
		{"unix!/run/m.sock", wire.Addr{Net: "unix", Path: "/run/m.sock"}, "/run/m.sock"},
		{"/run/m.sock", wire.Addr{Net: "unix", Path: "/run/m.sock"}, "/run/m.sock"},
		{"./m", wire.Addr{Net: "unix", Path: "./m"}, "./m"},
		{"../m", wire.Addr{Net: "unix", Path: "../m"}, "../m"},
		{"unix!m!n", wire.Addr{Net: "unix", Path: "m!n"}, "m!n"},
		{"unix!@name", wire.Addr{Net: "unix", Path: "@name"}, "@name"},
		{"tcp!host!564", wire.Addr{Net: "tcp", Host: "host", Port: 564}, "host:564"},
		{"tcp!host", wire.Addr{Net: "tcp", Host: "host", Port: 564}, "host:564"},
		{"tcp!*!5640", wire.Addr{Net: "tcp", Port: 5640}, ":5640"},
		{"tcp!::1!564", wire.Addr{Net: "tcp", Host: "::1", Port: 564}, "[::1]:564"},
		{"[::1]:564", wire.Addr{Net: "tcp", Host: "::1", Port: 564}, "[::1]:564"},
		{"localhost:0", wire.Addr{Net: "tcp", Host: "localhost"}, "localhost:0"},
		{":564", wire.Addr{Net: "tcp", Port: 564}, ":564"},
		{in: ""}, {in: "m.sock"}, {in: "unix!"}, {in: "unix!@"}, {in: "unix!" + long}, {in: "/a\x00b"},
		{in: "tcp!h!70000"}, {in: "tcp!h!x"}, {in: "tcp!h!"}, {in: "host:9pfs"}, {in: "tcp!a b!564"},
		{in: "udp!h!564"}, {in: "a:b:c"}, {in: "tcp!h!564!x"},
	} {
		got, err := wire.ParseAddr(c.in)
		if c.want.Net == "" {
			if !errors.Is(err, wire.ErrAddr) {
				t.Errorf("ParseAddr(%q) = %+v, %v; want ErrAddr", c.in, got, err)
			}
			continue
		}
		if err != nil || got != c.want || got.Dial() != c.dial {
			t.Errorf("ParseAddr(%q) = %+v (dial %q), %v; want %+v (dial %q)", c.in, got, got.Dial(), err, c.want, c.dial)
		}
	}
}

func TestAddrOf(t *testing.T) {
	for _, c := range []struct {
		in   net.Addr
		want string
	}{
		{&net.UnixAddr{Name: "/s", Net: "unix"}, "unix!/s"},
		{&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5640}, "tcp!127.0.0.1!5640"},
		{&net.TCPAddr{IP: net.IPv6unspecified, Port: 5640}, "tcp!!5640"},
		{&net.TCPAddr{IP: net.ParseIP("fe80::1"), Zone: "eth0", Port: 1}, "tcp!fe80::1%eth0!1"},
	} {
		if a, ok := wire.AddrOf(c.in); !ok || a.String() != c.want {
			t.Errorf("AddrOf(%v) = %q, %v; want %q", c.in, a, ok, c.want)
		}
	}
	if a, ok := wire.AddrOf(&net.UDPAddr{}); ok {
		t.Errorf("AddrOf(udp) = %v", a)
	}
}

// FuzzParseAddr checks that what is taken reads the same when written again.
func FuzzParseAddr(f *testing.F) {
	for _, s := range []string{
		"unix!/run/m", "tcp!h!1", "tcp!*!564", "[::1]:2", "./x", "a:1", "vsock!2!564", "", "!", "tcp!", "unix!@x", "[::1%lo]:9",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := wire.ParseAddr(s)
		if err != nil {
			if !errors.Is(err, wire.ErrAddr) {
				t.Fatalf("ParseAddr(%q): %v", s, err)
			}
			return
		}
		b, err := wire.ParseAddr(a.String())
		if err != nil || a != b {
			t.Fatalf("ParseAddr(%q) = %+v, which reads %+v, %v when written as %q", s, a, b, err, a)
		}
		if a.Dial() == "" {
			t.Fatalf("ParseAddr(%q) has nothing to dial", s)
		}
	})
}
