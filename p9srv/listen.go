package p9srv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"github.com/mezzofs/mezzo/p9srv/wire"
	"golang.org/x/sys/unix"
)

// probeTime is how long a server has to take a connection to a socket that is
// in the way before it counts as busy.
const probeTime = 2 * time.Second

// Listen listens on an address in a form of wire.ParseAddr. A unix socket that
// a dead server left behind is replaced; one that answers, and a file that is
// no socket, are errors. Closing the listener removes its socket.
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	a, err := wire.ParseAddr(addr)
	if err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, a.Net, a.Dial())
	if err == nil {
		return l, nil
	}
	if !errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("listen on %v: %w", a, err)
	}
	if a.Net == "unix" && a.Path[0] != '@' {
		if err := removeStale(ctx, a); err != nil {
			return nil, err
		}
		if l, err = lc.Listen(ctx, a.Net, a.Dial()); err == nil {
			return l, nil
		}
	}
	return nil, fmt.Errorf("listen on %v: in use by another process: %w", a, unix.EADDRINUSE)
}

// removeStale removes a socket that nobody listens on.
func removeStale(ctx context.Context, a wire.Addr) error {
	before, err := os.Lstat(a.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listen on %v: %w", a, err)
	}
	if before.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("listen on %v: there is a file that is not a socket: %w", a, unix.EEXIST)
	}
	d := net.Dialer{Timeout: probeTime}
	c, err := d.DialContext(ctx, "unix", a.Path)
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("listen on %v: in use: a server answers there: %w", a, unix.EADDRINUSE)
	}
	// Somebody else may have replaced it just now.
	now, err := os.Lstat(a.Path)
	if err != nil || !os.SameFile(before, now) {
		return nil
	}
	if err := os.Remove(a.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("listen on %v: remove the socket a dead server left: %w", a, err)
	}
	return nil
}
