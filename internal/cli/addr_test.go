package cli

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mezzofs/mezzo/p9srv/wire"
)

func TestParseAddress(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"unix!/run/x", "unix!/run/x"},
		{"/run/x y", "unix!/run/x y"},
		{"./x", "unix!./x"},
		{"unix!rel", "unix!rel"},
		{"tcp!host!564", "tcp!host!564"},
		{"tcp!!564", "tcp!!564"},
		{"host:564", "tcp!host!564"},
		{"[::1]:564", "tcp!::1!564"},
		{":564", "tcp!!564"},
		{"tcp!host", "tcp!host!564"},
	} {
		a, err := parseAddress(tt.in)
		if err != nil || a.String() != tt.want {
			t.Errorf("%q: %v, %v; want %s", tt.in, a, err, tt.want)
		}
		if b, err := parseAddress(a.String()); err != nil || a != b {
			t.Errorf("%q: its own form %q reads as %v, %v", tt.in, a, b, err)
		}
	}
	for _, in := range []string{"", "unix!", "tcp!host!", "tcp!h!65536", "h:x", "name", "udp!h!1", "il!h!1"} {
		if a, err := parseAddress(in); err == nil {
			t.Errorf("%q was taken as %v", in, a)
		} else if !strings.Contains(err.Error(), "an address is unix!PATH") {
			t.Errorf("%q: %v says no remedy", in, err)
		}
	}
}

func TestLoopback(t *testing.T) {
	for in, want := range map[string]bool{
		"/run/x": true, "127.0.0.1:1": true, "127.9.9.9:1": true, "[::1]:1": true,
		"0.0.0.0:1": false, ":1": false, "[::]:1": false, "192.0.2.1:1": false,
	} {
		a, err := parseAddress(in)
		if err != nil || a.loopback() != want {
			t.Errorf("%q: loopback %v, want %v (%v)", in, a.loopback(), want, err)
		}
	}
}

func TestListenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	live, err := net.Listen("unix", filepath.Join(dir, "live"))
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	for _, tt := range []struct {
		in   address
		code int
		want string
	}{
		{address{wire.Addr{Net: "tcp", Host: "0.0.0.0"}}, exitUsage, "--insecure"},
		{addressOf(busy.Addr()), exitInUse, "address in use"},
		{addressOf(live.Addr()), exitInUse, "address in use"},
		{unixAddress(file), exitInUse, "address in use"},
		{unixAddress("/" + strings.Repeat("x", 200)), exitFailed, "at most 107"},
		{unixAddress("/nosuch/dir/x"), exitFailed, "no such file"},
	} {
		ls, err := listenAll(t.Context(), listening{addrs: []address{unixAddress(filepath.Join(dir, "first")), tt.in}})
		if err == nil || exitCode(err) != tt.code || !strings.Contains(err.Error(), tt.want) || ls != nil {
			t.Errorf("%v: %v, code %d", tt.in, err, exitCode(err))
		}
		if _, err := os.Stat(filepath.Join(dir, "first")); err == nil {
			t.Errorf("%v: the socket before it was left open", tt.in)
		}
	}
}

func TestSocketOwner(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Logf("%s: %v", at, err)
			continue
		}
		defer l.Close()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		uid, ok, err := socketOwner(netip.MustParseAddrPort(c.LocalAddr().String()), netip.MustParseAddrPort(c.RemoteAddr().String()))
		if err != nil || !ok || int(uid) != os.Getuid() {
			t.Errorf("%s: owner %d, %v, %v", at, uid, ok, err)
		}
		if uid, ok, err := socketOwner(netip.MustParseAddrPort("192.0.2.1:77"), netip.MustParseAddrPort(c.RemoteAddr().String())); ok || err != nil {
			t.Errorf("a stranger is owned by %d (%v)", uid, err)
		}
	}
}

func TestFindOwnerReadsTable(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1001        0 1 1 0 100 0 0 10 0
   1: 0100007F:1538 0100007F:0051 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0
   2: 0100007F:1538 0100007F:0050 01 00000000:00000000 00:00000000 00000000  1002        0 2 1 0 100 0 0 10 0
`
	if !nativeLittle() {
		t.Skip("the table is as a little-endian machine prints it")
	}
	uid, ok, err := findOwner(strings.NewReader(table), netip.MustParseAddrPort("127.0.0.1:5432"), netip.MustParseAddrPort("127.0.0.1:80"))
	if err != nil || !ok || uid != 1002 {
		t.Errorf("owner %d, %v, %v; want that of the connection asked for", uid, ok, err)
	}
	if _, _, err := findOwner(strings.NewReader("heading\n0: zz:1 0:0 01 0 0 0 0 0 0\n"), netip.AddrPort{}, netip.AddrPort{}); err == nil {
		t.Error("a bad address was taken")
	}
}

func TestShellQuote(t *testing.T) {
	for in, want := range map[string]string{"/a/b.c": "/a/b.c", "": "''", "a b": "'a b'", "it's": `'it'\''s'`, "a\nb": "'a\nb'"} {
		if got := shellQuote(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

// TestClosedSocketHasNoOwner: the kernel says that what is left of a closed
// socket is root's, so whoever sends an attach and hangs up would be root.
func TestClosedSocketHasNoOwner(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	peer, own := netip.MustParseAddrPort(s.RemoteAddr().String()), netip.MustParseAddrPort(s.LocalAddr().String())
	if _, ok, err := socketOwner(peer, own); err != nil || !ok {
		t.Fatalf("open: %v, %v", ok, err)
	}
	if _, err := c.Write([]byte("what was sent before")); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if uid, ok, err := socketOwner(peer, own); ok || err != nil {
		t.Errorf("closed: user %d, %v, %v", uid, ok, err)
	}
}
