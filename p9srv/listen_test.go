package p9srv_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

func TestListen(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "s")

	// What a killed server leaves.
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err)
	}
	l, err = p9srv.Listen(ctx, "unix!"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := p9srv.Listen(ctx, path); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), path) {
		t.Errorf("a second listener on a socket: %v", err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the second took the first one's socket away: %v", err)
	}

	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := p9srv.Listen(ctx, file); err == nil {
		t.Error("listened over a file")
	}
	if _, err := os.Lstat(file); err != nil {
		t.Error(err)
	}

	tl, err := p9srv.Listen(ctx, "tcp!127.0.0.1!0")
	if err != nil {
		t.Fatal(err)
	}
	defer tl.Close()
	a, _ := wire.AddrOf(tl.Addr())
	if _, err := p9srv.Listen(ctx, a.String()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second listener on %v: %v", a, err)
	}
	if _, err := p9srv.Listen(ctx, "nonsense"); !errors.Is(err, wire.ErrAddr) {
		t.Error(err)
	}
	if _, err := p9srv.Listen(ctx, "/nonexistent/s"); !errors.Is(err, syscall.ENOENT) {
		t.Error(err)
	}
}
