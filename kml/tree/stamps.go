package tree

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// stamps remember which inode an object was seen to be. A handle tells an inode
// from another that got its number later; so does its change time, once that is
// past: whoever has the number later was made, and so changed, later too. That
// saves a look at the handle for what did not change since the last.
type stamps [64]stampShard

type stampShard struct {
	mu sync.Mutex
	m  map[kml.OID]stamp
}

// stamp is an inode that had this change time when that was past.
type stamp struct {
	ino    uint64
	ctime  int64
	handle string
}

const maxStamps = 512 // a shard

// stampAge is how far a change time must lie back, in nanoseconds of both: where
// file systems count in seconds it is long, else ten of the kernel's ticks at
// their longest.
func stampAge(ctime int64) time.Duration {
	if ctime%int64(time.Second) == 0 {
		return 3 * time.Second
	}
	return 100 * time.Millisecond
}

func (s *stamps) of(oid kml.OID) *stampShard { return &s[stripeOf(oid)%len(s)] }

// has reports whether st is of the inode that the index has for o.
func (s *stamps) has(o *Object, st *unix.Statx_t) bool {
	sh := s.of(o.OID)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	v, ok := sh.m[o.OID]
	return ok && v.ino == st.Ino && v.ctime == nsOf(st.Ctime) && v.handle == string(o.Handle)
}

// put notes that st was of the inode with o's handle. Both were looked at just
// now, the handle later.
func (s *stamps) put(o *Object, st *unix.Statx_t) {
	ctime := nsOf(st.Ctime)
	if len(o.Handle) == 0 || o.Ino != st.Ino || time.Since(time.Unix(0, ctime)) < stampAge(ctime) {
		return
	}
	sh := s.of(o.OID)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.m == nil {
		sh.m = make(map[kml.OID]stamp)
	}
	sh.m[o.OID] = stamp{st.Ino, ctime, string(o.Handle)}
	for k := range sh.m {
		if len(sh.m) <= maxStamps {
			break
		}
		delete(sh.m, k)
	}
}

// verify makes sure that a name, or with an empty one dirfd itself, of which st
// is, holds the inode the index has for o, and gives its handle; errMismatch when
// it does not.
func (t *Tree) verify(dirfd int, name string, o *Object, st *unix.Statx_t) (handle []byte, err error) {
	if t.stamps.has(o, st) {
		return o.Handle, nil
	}
	var h rawHandle
	if err := h.at(dirfd, name); err != nil {
		return nil, mismatch(err)
	}
	if len(o.Handle) == 0 {
		return h.bytes(), nil // its record was found behind the index: told by name
	}
	if !h.is(o.Handle) {
		return nil, errMismatch
	}
	t.stamps.put(o, st)
	return o.Handle, nil
}

// verifyName is verify without a stat.
func (t *Tree) verifyName(dirfd int, name string, o *Object) error {
	var h rawHandle
	if err := h.at(dirfd, name); err != nil {
		return mismatch(err)
	}
	if len(o.Handle) > 0 && !h.is(o.Handle) {
		return errMismatch
	}
	return nil
}
