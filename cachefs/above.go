package cachefs

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"syscall"

	"github.com/mezzofs/mezzo/kml/tree"
)

// above are links to the master on which clients of a replica send what they
// write, one for each user: the master decides as what each may do.
type above struct {
	mu sync.Mutex
	m  map[uint32]*aboveLink
}

// aboveLink is one user's link. It lasts as long as a file is open on it.
type aboveLink struct {
	up    *upstream
	users int // guarded by above.mu
}

// OpenAbove opens a file of the master's journal extension as a user: the doors
// by which clients of this replica send their changes. EHOSTDOWN when there is no
// link to the master.
func (r *Replica) OpenAbove(ctx context.Context, uid uint32, create bool, flags int, names ...string) (tree.ExtHandle, error) {
	l, err := r.aboveFor(ctx, uid)
	if err != nil {
		return nil, err
	}
	at := l.up.streams
	if create || len(names) > 1 {
		at = l.up.calls
	}
	open := at.Open
	if create {
		open = at.Create
	}
	bound, stop := l.up.bind(ctx)
	defer stop()
	f, err := open(bound, flags, names...)
	if err != nil {
		r.leave(l, err)
		return nil, l.answer(ctx, err)
	}
	return &aboveFile{r: r, l: l, f: f}, nil
}

// aboveFor is a user's link, made when there is none. The caller leaves it.
func (r *Replica) aboveFor(ctx context.Context, uid uint32) (*aboveLink, error) {
	r.mu.Lock()
	linked := r.up != nil
	r.mu.Unlock()
	if !linked {
		return nil, fmt.Errorf("%s cannot be reached: %w", r.o.Addr, syscall.EHOSTDOWN)
	}
	a := &r.above
	if l := a.take(uid); l != nil {
		return l, nil
	}
	o := r.link
	o.as, o.Uname = &uid, strconv.FormatUint(uint64(uid), 10)
	up, err := r.connectAs(ctx, &o)
	if err != nil {
		var errno syscall.Errno
		if errors.As(err, &errno) && (errno == syscall.EACCES || errno == syscall.EPERM) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", syscall.EHOSTDOWN, hide(err))
	}
	if l := a.take(uid); l != nil { // another was quicker
		up.close()
		return l, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.m == nil {
		a.m = make(map[uint32]*aboveLink)
	}
	l := &aboveLink{up: up, users: 1}
	a.m[uid] = l
	return l, nil
}

func (a *above) take(uid uint32) *aboveLink {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.m[uid]
	if l == nil || l.up.ctx.Err() != nil {
		return nil
	}
	l.users++
	return l
}

// leave gives a link back. One that failed is of no use to anybody.
func (r *Replica) leave(l *aboveLink, err error) {
	var errno syscall.Errno
	a := &r.above
	a.mu.Lock()
	defer a.mu.Unlock()
	l.users--
	if l.users > 0 && (err == nil || errors.As(err, &errno) || errors.Is(err, context.Canceled)) {
		return
	}
	for uid, other := range a.m {
		if other == l {
			delete(a.m, uid)
		}
	}
	l.up.close()
}

// cutAbove ends all links: the master is out of reach.
func (r *Replica) cutAbove() {
	a := &r.above
	a.mu.Lock()
	defer a.mu.Unlock()
	for uid, l := range a.m {
		delete(a.m, uid)
		l.up.close()
	}
}

// answer makes EHOSTDOWN of the want of an answer.
func (l *aboveLink) answer(ctx context.Context, err error) error {
	return l.up.down(ctx, err)
}

// aboveFile is a file open at the master for a client of the replica.
type aboveFile struct {
	r    *Replica
	l    *aboveLink
	f    linkFile
	once sync.Once
}

// ReadAt is one read at the master.
func (f *aboveFile) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	bound, stop := f.l.up.bind(ctx)
	defer stop()
	n, err := f.f.ReadOnce(bound, p, off)
	return n, f.l.answer(ctx, err)
}

// WriteAt is a write at the master.
func (f *aboveFile) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	bound, stop := f.l.up.bind(ctx)
	defer stop()
	n, err := f.f.WriteAt(bound, p, off)
	return n, f.l.answer(ctx, err)
}

// Attr says nothing.
func (f *aboveFile) Attr() (tree.Attr, bool) { return tree.Attr{}, false }

// Close closes the file at the master.
func (f *aboveFile) Close() error {
	var err error
	f.once.Do(func() {
		if f.l.up.ctx.Err() == nil {
			err = f.f.Close()
		}
		f.r.leave(f.l, err)
	})
	if err != nil {
		err = f.l.up.down(f.r.ctx, err)
	}
	return err
}
