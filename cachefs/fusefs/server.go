package fusefs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml/tree"
)

// Options say how a tree is mounted. The zero value works.
type Options struct {
	Ext        tree.Ext  // shown as .mezzo in the root; nil: no such folder
	Door       tree.Door // marks the changes made through this mount; must differ from other doors' when not 0
	Name       string    // shown in the mount table as the source; "" is "mezzo"
	AllowOther bool      // let other users in; their rights are the kernel's to check
	ReadOnly   bool

	// How long the kernel may keep entries and attributes without a
	// notification. 0: for ever.
	EntryTimeout time.Duration
	AttrTimeout  time.Duration

	Logger *slog.Logger // nil: slog.Default
	Debug  bool         // log every request at debug level
}

// Server is a mount being served. Its methods may be called at the same time.
type Server struct {
	point mountpoint
	raw   *raw
	srv   *fuse.Server
	quit  context.CancelFunc // ends the context of every call
	done  chan struct{}      // closed when nothing runs any more

	closeOnce sync.Once
	closeErr  error
}

// Mount mounts fs at mnt, an empty folder, and serves it until the mount goes
// or Close is called. As root it mounts directly, else through fusermount3.
// ctx bounds the mounting only. The caller keeps fs and closes it after the
// Server. Errors start with mnt and wrap one of this package's Err values, or
// what the system said.
func Mount(ctx context.Context, mnt string, fs tree.FS, o Options) (*Server, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", mnt, err)
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	fd, point, err := mount(mnt, o)
	if err != nil {
		return nil, err
	}
	// A second descriptor, for notifications. It does not keep the connection
	// alive: abort ends it first.
	var kernel *notifier
	dev, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		kernel, err = newNotifier(dev)
	}
	if err != nil {
		if dev >= 0 {
			unix.Close(dev)
		}
		unix.Close(fd)
		_, _ = point.unmount(ctx)
		return nil, fmt.Errorf("%s: %w", mnt, err)
	}
	// Requests outlive the mounting, so their context is Background's and ends
	// with the server.
	base, quit := context.WithCancel(tree.WithDoor(context.Background(), o.Door))
	s := &Server{point: point, quit: quit, done: make(chan struct{})}
	s.raw = newRaw(base, fs, o, kernel)
	// With this name go-fuse takes the descriptor and leaves mounting,
	// unmounting and the paths below the mount to us.
	s.srv, err = fuse.NewServer(s.raw, fmt.Sprintf("/dev/fd/%d", fd), &fuse.MountOptions{
		FsName:                   o.source(),
		Name:                     "mezzo",
		MaxWrite:                 maxWrite,
		MaxBackground:            64,
		MaxReadAhead:             maxWrite,
		EnableLocks:              true,
		EnableAcl:                true,
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true,
		ExtraCapabilities: fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_DONT_MASK | fuse.CAP_READDIRPLUS_AUTO |
			fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_SETXATTR_EXT,
		Debug:        o.Debug,
		Logger:       slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug),
		PanicHandler: s.raw.panicked,
	})
	if err != nil {
		quit()
		kernel.close()
		unix.Close(dev)
		_ = point.abort()
		_, _ = point.unmount(ctx)
		return nil, fmt.Errorf("%s: %w", mnt, err)
	}
	s.raw.start()
	go s.serve()
	return s, nil
}

// serve owns the server's goroutines: it ends after all of them.
func (s *Server) serve() {
	defer close(s.done)
	s.srv.Serve()
	s.quit()
	s.raw.stop()
	unix.Close(s.raw.kernel.dev)
}

// Path is the mount point, absolute and without symbolic links.
func (s *Server) Path() string { return s.point.path }

// Wait returns when the mount is gone, by Close or by somebody's umount, and
// everything opened through it is closed.
func (s *Server) Wait() { <-s.done }

// Close unmounts, ends the connection and waits until everything opened
// through the mount is closed. A mount in use for longer than some tenths of a
// second, or at the end of ctx, is detached lazily, and the error is a
// *BusyError. Calls after the first wait for it and return the same.
func (s *Server) Close(ctx context.Context) error {
	s.closeOnce.Do(func() { s.closeErr = s.shut(ctx) })
	return s.closeErr
}

func (s *Server) shut(ctx context.Context) error {
	lazy, err := s.point.unmount(ctx)
	if lazy || err != nil {
		// Somebody holds the mount, or waits in it: nothing else ends that.
		s.quit()
		err = errors.Join(err, s.point.abort())
	}
	if err != nil || lazy && !s.point.direct {
		// Without fusectl only the process's end takes the mount from a user
		// who holds it. ctx may have ended, which is no reason not to try:
		// hence Background.
		ctx, cancel := context.WithTimeout(context.Background(), lastWait)
		defer cancel()
		select {
		case <-s.done:
		case <-ctx.Done():
			return errors.Join(err, &BusyError{Path: s.point.path})
		}
	}
	<-s.done
	if lazy && err == nil {
		err = &BusyError{Path: s.point.path}
	}
	return err
}

// lastWait is how long Close waits for a connection that it may not have been
// able to end.
const lastWait = 2 * time.Second
