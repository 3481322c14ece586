package fusefs

import (
	"math"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml/tree"
)

// owner makes the kernel's lock owner one of all doors'.
func (r *raw) owner(o uint64) tree.LockOwner { return tree.LockOwner{Door: r.o.Door, Owner: o} }

// flockOwner is the owner of flock(2)'s locks: an open file. The kernel's number of
// it may be that of the next open file before the last close of this one is told.
func (r *raw) flockOwner(fh uint64) tree.LockOwner { return r.owner(fh | 1<<63) }

// lock reads a lock as the kernel sends it; its end of file is 2^63-1.
func (r *raw) lock(in *fuse.LkIn) tree.Lock {
	l := tree.Lock{
		Type: int16(in.Lk.Typ), Flock: in.LkFlags&fuse.FUSE_LK_FLOCK != 0,
		Start: in.Lk.Start, End: in.Lk.End, PID: in.Lk.Pid, Owner: r.owner(in.Owner),
	}
	if l.Flock {
		l.Owner = r.flockOwner(in.Fh)
	}
	if l.End >= math.MaxInt64 {
		l.End = math.MaxUint64
	}
	return l
}

// GetLk is fcntl(2) F_GETLK.
func (r *raw) GetLk(cancel <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	c := r.begin(cancel, &in.InHeader)
	defer c.end()
	n, st := r.folder(in.NodeId)
	if st != fuse.OK {
		return st
	}
	l, err := r.fs.TestLock(c, n.oid, r.lock(in))
	if err != nil {
		return r.status("getlk", err)
	}
	out.Lk = fuse.FileLock{Start: l.Start, End: min(l.End, math.MaxInt64), Typ: uint32(l.Type), Pid: l.PID}
	return fuse.OK
}

// SetLk is fcntl(2) F_SETLK and flock(2) with LOCK_NB.
func (r *raw) SetLk(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return r.setLk(cancel, in, false)
}

// SetLkw waits; a signal ends the waiting.
func (r *raw) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return r.setLk(cancel, in, true)
}

func (r *raw) setLk(cancel <-chan struct{}, in *fuse.LkIn, wait bool) fuse.Status {
	l := r.lock(in)
	c := r.beginWait(cancel, &in.InHeader)
	if l.Type == unix.F_UNLCK {
		c = r.begin(cancel, &in.InHeader) // which no signal that a program handles interrupts
	}
	defer c.end()
	n, st := r.folder(in.NodeId)
	if st != fuse.OK {
		return st
	}
	if f := r.files.get(in.Fh); f != nil && l.Type != unix.F_UNLCK {
		// From here on closes are told to us; this file's is, in any case, at
		// its last one.
		if !l.Flock {
			n.locked.Store(true)
		}
		f.mu.Lock()
		if f.owners == nil {
			f.owners = map[tree.LockOwner]struct{}{}
		}
		f.owners[l.Owner] = struct{}{}
		f.locks.Store(true)
		f.mu.Unlock()
	}
	err := r.fs.SetLock(c, n.oid, l, wait)
	if err == nil && l.Type != unix.F_UNLCK {
		r.queue.barrier(c, true) // what the lock protects is read as it is now
	}
	return r.status("setlk", err)
}

// lost reports that locks taken through an open file were lost; with told once.
func (r *raw) lost(f *file, told bool) bool {
	if r.loser == nil || !f.locks.Load() {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	was := false
	for o := range f.owners {
		was = r.loser.LostLock(f.n.oid, o, told) || was
	}
	return was
}
