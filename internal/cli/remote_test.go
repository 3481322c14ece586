package cli

import (
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

// fakeServer answers the first message of each connection with answer and
// closes it.
func fakeServer(t *testing.T, answer string) address {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := c.Read(make([]byte, 4096)); err == nil {
				io.WriteString(c, answer)
			}
			c.Close()
		}
	}()
	return unixAddress(path)
}

func TestDialProblems(t *testing.T) {
	for _, tt := range []struct{ name, answer, want string }{
		{"http", "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nno 9P here, but a long text about that", "not a 9P server: is that the address of a mezzo master?"},
		{"version", "\x14\x00\x00\x00\x65\xff\xff\x00\x20\x00\x00\x07\x00unknown", "refuses the version 9P2000.L"},
		{"silence", "", "is that the address of a mezzo master?"},
	} {
		addr := fakeServer(t, tt.answer)
		for _, args := range [][]string{{"status", addr.String()}, {"mount", "-f", "--cache", filepath.Join(t.TempDir(), "c"), addr.String(), t.TempDir()}} {
			code, _, stderr := run(t, args...)
			if code != exitUnreachable || !strings.HasPrefix(stderr, "mezzo "+args[0]+": "+addr.String()+": ") || !strings.Contains(stderr, tt.want) {
				t.Errorf("%s: %s ended with %d: %q, want %q", tt.name, args[0], code, stderr, tt.want)
			}
		}
	}
}
