package p9srv_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"

	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/client"
	"golang.org/x/sys/unix"
)

// news is a file that is read as it is written.
type news struct {
	object
	lines chan string
}

func (*news) StreamReads() bool { return true }

func (n *news) ReadAtContext(ctx context.Context, p []byte, _ int64) (int, error) {
	select {
	case line := <-n.lines:
		return copy(p, line), nil
	case <-ctx.Done():
		return 0, syscall.EINTR
	}
}

func (n *news) WriteAtContext(ctx context.Context, p []byte, _ int64) (int, error) {
	select {
	case n.lines <- string(p):
		return len(p), nil
	case <-ctx.Done():
		return 0, syscall.EINTR
	}
}

// A read of a StreamReader is answered with what there is, and one of a
// ContextReader may wait until there is some.
func ExampleStreamReader() {
	serve(&news{object: file(), lines: make(chan string)}, func(ctx context.Context, fid *client.Fid) error {
		if _, err := fid.Open(ctx, p9.ReadWrite); err != nil {
			return err
		}
		written := make(chan error)
		go func() { _, err := fid.Write(ctx, []byte("first"), 0); written <- err }()
		b := make([]byte, 100)
		n, err := fid.Read(ctx, b, 0)
		fmt.Printf("%s %v %v\n", b[:n], err, <-written)
		return nil
	})
	// Output: first <nil> <nil>
}

// A read that waits ends when the client flushes it.
func ExampleContextReader() {
	serve(&news{object: file()}, func(ctx context.Context, fid *client.Fid) error {
		if _, err := fid.Open(ctx, p9.ReadOnly); err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		_, err := fid.Read(ctx, make([]byte, 1), 0)
		fmt.Println(err)
		return nil
	})
	// Output: context canceled
}

// A write that waits, too.
func ExampleContextWriter() {
	serve(&news{object: file(), lines: make(chan string, 1)}, func(ctx context.Context, fid *client.Fid) error {
		if _, err := fid.Open(ctx, p9.WriteOnly); err != nil {
			return err
		}
		n, err := fid.Write(ctx, []byte("there is room"), 0)
		fmt.Println(n, err)
		return nil
	})
	// Output: 13 <nil>
}

// disk is a file of the file system.
type disk struct {
	meeting
	f *os.File
}

func (*disk) InPlace(op p9srv.InPlaceOp) bool { return op == p9srv.OpRead || op == p9srv.OpMeta }

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.f.ReadAt(p, off)
	if err == io.EOF {
		err = nil
	}
	return n, err
}

func (d *disk) PipeSize(off int64, n int) int {
	st, err := d.f.Stat()
	if err != nil {
		return 0
	}
	return int(max(0, min(int64(n), st.Size()-off)))
}

func (d *disk) ReadToPipe(pipe int, off int64, n int) (int, error) {
	m, err := unix.Splice(int(d.f.Fd()), &off, pipe, nil, n, unix.SPLICE_F_NONBLOCK)
	return int(m), err
}

// Large reads of a PipeReader reach a socket without being copied, where both
// can; the client notices nothing.
func ExamplePipeReader() {
	f, err := os.CreateTemp("", "example-")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.WriteString(strings.Repeat("page", 1<<18)); err != nil {
		fmt.Println(err)
		return
	}
	serve(&disk{meeting: meeting{object: file()}, f: f}, func(ctx context.Context, fid *client.Fid) error {
		if _, err := fid.Open(ctx, p9.ReadOnly); err != nil {
			return err
		}
		n, err := fid.CopyTo(ctx, io.Discard, 0, 4)
		fmt.Println(n, err)
		return nil
	})
	// Output: 1048576 <nil>
}

// guarded is a file with one lock.
type guarded struct {
	object
	mu  sync.Mutex
	has string
}

func (g *guarded) LockContext(_ context.Context, l p9srv.Lock) (p9.LockStatus, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case l.Type == p9.Unlock && g.has == l.Client:
		g.has = ""
	case l.Type != p9.Unlock && g.has != "" && g.has != l.Client:
		return p9.LockStatusBlocked, nil
	case l.Type != p9.Unlock:
		g.has = l.Client
	}
	return p9.LockStatusOK, nil
}

func (g *guarded) GetLock(_ context.Context, l p9srv.Lock) (p9srv.Lock, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.has == "" || g.has == l.Client {
		l.Type = p9.Unlock
	} else {
		l.Client = g.has
	}
	return l, nil
}

// lockAs locks for a client.
func lockAs(ctx context.Context, fid *client.Fid, who string) {
	st, err := fid.Lock(ctx, client.Lock{Type: p9.WriteLock, Client: who})
	fmt.Println(who, st == p9.LockStatusOK, err)
}

// A ContextLocker has the locks of its own.
func ExampleContextLocker() {
	serve(&guarded{object: file()}, func(ctx context.Context, fid *client.Fid) error {
		if _, err := fid.Open(ctx, p9.ReadWrite); err != nil {
			return err
		}
		lockAs(ctx, fid, "ken")
		lockAs(ctx, fid, "rob")
		return nil
	})
	// Output:
	// ken true <nil>
	// rob false <nil>
}

// A LockTester says who is in the way.
func ExampleLockTester() {
	serve(&guarded{object: file()}, func(ctx context.Context, fid *client.Fid) error {
		if _, err := fid.Open(ctx, p9.ReadWrite); err != nil {
			return err
		}
		lockAs(ctx, fid, "ken")
		l, err := fid.GetLock(ctx, client.Lock{Type: p9.WriteLock, Client: "rob"})
		fmt.Println(l.Client, err)
		return nil
	})
	// Output:
	// ken true <nil>
	// ken <nil>
}

// draft is a file that is stored when it is closed, by who meant to.
type draft struct {
	object
	closed chan string
}

func (d *draft) CloseContext(ctx context.Context) error {
	if ctx.Err() != nil {
		d.closed <- "lost"
		return nil
	}
	d.closed <- "stored"
	return nil
}

// A Closer knows a clunk from the end of a connection.
func ExampleCloser() {
	for _, clunk := range []bool{true, false} {
		d := &draft{object: file(), closed: make(chan string, 1)}
		serve(d, func(ctx context.Context, fid *client.Fid) error {
			if clunk {
				return fid.Clunk(ctx)
			}
			return nil
		})
		fmt.Println(<-d.closed)
	}
	// Output:
	// stored
	// lost
}

// durable is a file that says what is asked of it.
type durable struct{ object }

func (durable) FSyncContext(_ context.Context, datasync bool) error {
	fmt.Println("datasync:", datasync)
	return nil
}

func (durable) SetAttrContext(_ context.Context, valid p9.SetAttrMask, attr p9.SetAttr) error {
	fmt.Printf("chmod %o: %v\n", attr.Permissions, valid.Permissions)
	return nil
}

// An FSyncer knows fdatasync(2) from fsync(2).
func ExampleFSyncer() {
	serve(&durable{file()}, func(ctx context.Context, fid *client.Fid) error {
		if _, err := fid.Open(ctx, p9.ReadWrite); err != nil {
			return err
		}
		return errors.Join(fid.FSync(ctx, false), fid.FSync(ctx, true))
	})
	// Output:
	// datasync: false
	// datasync: true
}

// A SetAttrer gets the request's context with new attributes.
func ExampleSetAttrer() {
	serve(&durable{file()}, func(ctx context.Context, fid *client.Fid) error {
		return fid.SetAttr(ctx, p9.SetAttrMask{Permissions: true}, p9.SetAttr{Permissions: 0o600})
	})
	// Output: chmod 600: true
}
