package cachefs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/cachefs/fusefs"
)

// TestNoReaderSeesTwoVersions reads a file through a client's mount again and
// again while another client stores new contents as fast as it can: what one
// open reads, and what it is told of the size, is of one version.
func TestNoReaderSeesTwoVersions(t *testing.T) {
	if _, err := os.Stat("/dev/fuse"); errors.Is(err, fs.ErrNotExist) {
		t.Skip("no /dev/fuse")
	}
	m := newMaster(t)
	ctx := ctxOf(t)
	a, b := m.client(m.sock), m.client(m.sock)
	version := func(i int) string { return strings.Repeat(string(rune('a'+i%26)), 5000*(1+i%7)) }
	must(t, writeFile(ctx, a, "f", version(0)))
	must(t, a.Sync(ctx))
	mnt := t.TempDir()
	srv, err := fusefs.Mount(ctx, mnt, b, fusefs.Options{Door: 9})
	must(t, err)
	closed := false
	unmount := func() {
		if !closed {
			closed = true
			if err := srv.Close(context.Background()); err != nil {
				t.Error(err)
			}
		}
	}
	defer unmount()
	// Go's poller asks a file about events when it is opened, on a thread that
	// this process's server needs: let the kernel learn first that it need not.
	fd, err := unix.Open(filepath.Join(mnt, ".go-fuse-epoll-hack"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		fd, err = unix.Open(filepath.Join(mnt, "f"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	must(t, err)
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	must(t, unix.Close(fd))
	p := filepath.Join(mnt, "f")
	same(t, version(0), func() (string, error) {
		b, err := os.ReadFile(p)
		return string(b), err
	})

	end := make(chan struct{})
	done := make(chan error, 3)
	var reads atomic.Int64
	for range cap(done) {
		go func() {
			for {
				select {
				case <-end:
					done <- nil
					return
				default:
				}
				if err := readVersion(p); err != nil {
					done <- err
					return
				}
				reads.Add(1)
			}
		}()
	}
	const versions = 60
	for i := 1; i <= versions; i++ {
		must(t, writeFile(ctx, a, "f", version(i)))
		must(t, a.Sync(ctx))
	}
	close(end)
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if reads.Load() < versions/4 {
		t.Errorf("only %d reads", reads.Load())
	}
	same(t, version(versions), func() (string, error) {
		b, err := os.ReadFile(p)
		return string(b), err
	})
	unmount()
}

// readVersion reads a file in parts and checks that they are of one version.
func readVersion(p string) error {
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	var all []byte
	buf := make([]byte, 3000)
	for {
		n, err := f.ReadAt(buf, int64(len(all)))
		all = append(all, buf[:n]...)
		if err != nil {
			break
		}
	}
	if len(all) == 0 || len(all)%5000 != 0 || int64(len(all)) != st.Size() || strings.Count(string(all), string(all[:1])) != len(all) {
		return fmt.Errorf("size %d, read %d bytes, from %q to %q", st.Size(), len(all), all[:min(1, len(all))], all[max(0, len(all)-1):])
	}
	return nil
}
