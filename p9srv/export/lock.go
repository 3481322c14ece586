package export

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"math"
	"sync"
	"syscall"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
	"github.com/mezzofs/mezzo/p9srv"
)

// ownerHash numbers lock owners: a process of a client on a connection. Two
// share a number once in 2^64; who they are cannot be steered from outside.
type ownerHash struct{ seed maphash.Seed }

func newOwnerHash() ownerHash { return ownerHash{maphash.MakeSeed()} }

func (o ownerHash) of(conn uint64, client string, pid uint32) uint64 {
	var b [12]byte
	binary.LittleEndian.PutUint64(b[:], conn)
	binary.LittleEndian.PutUint32(b[8:], pid)
	var h maphash.Hash
	h.SetSeed(o.seed)
	h.Write(b[:])
	h.WriteString(client)
	return h.Sum64()
}

// lockHolder remembers who took locks through a fid, so that they go with it.
// Close of any descriptor drops all locks of its process (fcntl(2)), so it is no
// loss that a clunk does.
type lockHolder struct {
	mu     sync.Mutex
	owners map[tree.LockOwner]struct{}
	ctx    context.Context // ends with the fid; made by the first who waits
	end    context.CancelFunc
	closed bool
}

// wait is a context that ends with ctx or with the fid.
func (l *lockHolder) wait(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		cancel()
		return ctx, cancel
	}
	if l.ctx == nil {
		// It ends with the fid, whoever waits.
		l.ctx, l.end = context.WithCancel(context.Background())
	}
	stop := context.AfterFunc(l.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// note remembers an owner that has got a lock; false when the fid is gone.
func (l *lockHolder) note(o tree.LockOwner) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	if l.owners == nil {
		l.owners = make(map[tree.LockOwner]struct{})
	}
	l.owners[o] = struct{}{}
	return true
}

// cancel wakes those who wait for a lock.
func (l *lockHolder) cancel() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.end != nil {
		l.end()
	}
}

// release drops all locks taken through the fid.
func (l *lockHolder) release(fs tree.FS, oid kml.OID) {
	l.mu.Lock()
	owners := l.owners
	l.owners = nil
	l.mu.Unlock()
	for o := range owners {
		fs.Unlock(oid, o)
	}
}

// Lock takes or gives up a lock; see LockContext.
func (f *File) Lock(pid int, t p9.LockType, flags p9.LockFlags, start, length uint64, client string) (p9.LockStatus, error) {
	return f.LockContext(f.ctx, p9srv.Lock{Type: t, Flags: flags, Start: start, Length: length, PID: uint32(pid), Client: client})
}

// LockContext takes, changes or gives up a byte-range lock, which all clients
// and local users share. A lock in the way is LockStatusBlocked, or with the
// block flag waited for until ctx ends or the fid goes. What was written is cut
// as a store before a lock is given up, so that the next holder sees it whole.
func (f *File) LockContext(ctx context.Context, l p9srv.Lock) (p9.LockStatus, error) {
	n := f.n
	tl, err := n.lockOf(l)
	if err != nil {
		return p9.LockStatusError, err
	}
	ctx = n.s.request(ctx)
	if tl.Type == unix.F_UNLCK {
		n.mu.RLock()
		defer n.mu.RUnlock()
		if n.h != nil && writes(n.flags) {
			err = n.h.Flush(ctx)
		}
		return p9.LockStatusOK, errors.Join(err, n.s.e.fs.SetLock(ctx, n.oid, tl, false))
	}
	wait := l.Flags&p9.LockFlagsBlock != 0
	if wait {
		var done context.CancelFunc
		ctx, done = n.locks.wait(ctx)
		defer done()
	}
	err = n.s.e.fs.SetLock(ctx, n.oid, tl, wait)
	switch {
	case errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES):
		return p9.LockStatusBlocked, nil
	case err != nil:
		return p9.LockStatusError, errno(err)
	}
	if !n.locks.note(tl.Owner) {
		n.s.e.fs.Unlock(n.oid, tl.Owner)
		return p9.LockStatusError, syscall.EBADF
	}
	return p9.LockStatusOK, nil
}

// GetLock tells the lock that is in l's way, or l as unlocked. Linux asks with
// type unlock, whatever its user has asked for (v9fs_file_getlock); it is told
// what would be in a write lock's way. The holder's client is not named: it may
// be no 9P client.
func (f *File) GetLock(ctx context.Context, l p9srv.Lock) (p9srv.Lock, error) {
	n := f.n
	tl, err := n.lockOf(l)
	if err != nil {
		return l, err
	}
	if tl.Type == unix.F_UNLCK {
		tl.Type = unix.F_WRLCK
	}
	got, err := n.s.e.fs.TestLock(n.s.request(ctx), n.oid, tl)
	if err != nil {
		return l, errno(err)
	}
	if got.Type == unix.F_UNLCK {
		l.Type = p9.Unlock
		return l, nil
	}
	r := p9srv.Lock{Type: p9.ReadLock, Start: got.Start, PID: got.PID}
	if got.Type == unix.F_WRLCK {
		r.Type = p9.WriteLock
	}
	if got.End < math.MaxInt64 {
		r.Length = got.End - got.Start + 1
	}
	return r, nil
}

// conn tells connections apart; where the engine does not, attaches.
func (s *session) conn(l p9srv.Lock) uint64 {
	if l.Conn != 0 {
		return l.Conn
	}
	return s.id | 1<<63
}

func (n *node) lockOf(l p9srv.Lock) (tree.Lock, error) {
	t := tree.Lock{
		Start: l.Start, End: ^uint64(0), PID: l.PID,
		Owner: tree.LockOwner{Door: n.s.e.o.Door, Owner: n.s.e.owners.of(n.s.conn(l), l.Client, l.PID)},
	}
	switch l.Type {
	case p9.ReadLock:
		t.Type = unix.F_RDLCK
	case p9.WriteLock:
		t.Type = unix.F_WRLCK
	case p9.Unlock:
		t.Type = unix.F_UNLCK
	default:
		return t, syscall.EINVAL
	}
	if l.Start > math.MaxInt64 || l.Length > math.MaxInt64 {
		return t, syscall.EINVAL
	}
	if l.Length > 0 {
		t.End = l.Start + l.Length - 1
	}
	return t, nil
}
