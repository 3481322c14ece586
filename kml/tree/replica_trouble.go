package tree

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mezzofs/mezzo/kml"
)

// Trouble is an object that the directory does not have as the master does, and
// why. It is tried again.
type Trouble struct {
	OID    kml.OID   `json:"oid"`
	Path   string    `json:"path"` // from the root of the fileset
	Op     string    `json:"op"`   // what could not be done
	Err    string    `json:"error"`
	Remedy string    `json:"remedy"`
	Since  time.Time `json:"since"`
	Tries  int       `json:"tries"`
}

// maxTroubles bounds how many are described; the others are counted.
const maxTroubles = 10000

type troubles struct {
	mu   sync.Mutex
	m    map[kml.OID]*Trouble
	over int64 // not described
}

func (x *troubles) clear(oid kml.OID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.m, oid)
}

// Trouble notes that an object cannot be brought now.
func (r *Replica) Trouble(oid kml.OID, err error) {
	r.trouble(oid, r.Path(oid), "bring", err)
}

func (r *Replica) trouble(oid kml.OID, path, op string, err error) {
	x := &r.troubles
	x.mu.Lock()
	defer x.mu.Unlock()
	now := r.t.now()
	b, ok := x.m[oid]
	if !ok {
		if len(x.m) >= maxTroubles {
			x.over++
			return
		}
		if x.m == nil {
			x.m = make(map[kml.OID]*Trouble)
		}
		b = &Trouble{OID: oid, Since: now}
		x.m[oid] = b
	}
	b.Path, b.Op, b.Err, b.Remedy = path, op, err.Error(), remedy(err)
	if b.Tries++; b.Tries == 3 { // what is being written comes with the next try
		r.t.logger.Warn("not replicated yet; the rest goes on", "fileset", r.t.dir, "path", path, "op", op, "err", err)
	}
}

// remedy is what a person can do about an error.
func remedy(err error) string {
	for _, c := range []struct {
		err  error
		text string
	}{
		{errFolds, "rename one of the two at the master, or --exclude it"},
		{syscall.ENOSPC, "make room on the replica's disk"},
		{syscall.EDQUOT, "raise the quota on the replica's disk"},
		{syscall.EROFS, "mount the replica's file system writable"},
		{syscall.EACCES, "give the user of mezzo replicate the right, or run it as root"},
		{syscall.EPERM, "run mezzo replicate as root, or leave the file out with --exclude"},
		{syscall.ENAMETOOLONG, "the name is too long for the replica's file system: rename it at the master, or --exclude it"},
		{syscall.EILSEQ, "the replica's file system takes no such name: rename it at the master, or --exclude it"},
		{syscall.EINVAL, "the replica's file system takes no such name or type: rename it at the master, or --exclude it"},
		{syscall.EFBIG, "the replica's file system takes no file of that size: use another, or --max-size"},
		{syscall.EOPNOTSUPP, "the replica's file system has no such type of file: --exclude it"},
		{syscall.ETXTBSY, "end the program that runs from the file"},
		{syscall.EHOSTDOWN, "it comes when the master is back"},
		{syscall.ESTALE, "the file is being written at the master; it comes when it rests"},
		{errNoFolder, "see what is said of its folder"},
	} {
		if errors.Is(err, c.err) {
			return c.text
		}
	}
	return "it is tried again"
}

// Troubles are what the directory lacks for a reason, by path, and how many more
// there are.
func (r *Replica) Troubles() (list []Trouble, more int64) {
	r.troubles.mu.Lock()
	defer r.troubles.mu.Unlock()
	for _, b := range r.troubles.m {
		list = append(list, *b)
	}
	slices.SortFunc(list, func(a, b Trouble) int { return strings.Compare(a.Path, b.Path) })
	return list, r.troubles.over
}

// standIns are names that go on holding what was there before, because what
// belongs there by now is still on its way. They are kept in memory: after a
// restart such a name is empty until that has come.
type standIns struct {
	mu sync.Mutex
	m  map[Name]string // the handle of what stands in
}

func (x *standIns) put(n Name, handle []byte) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.m == nil {
		x.m = make(map[Name]string)
	}
	x.m[n] = string(handle)
}

// is reports whether a name holds a stand-in; end: no longer.
func (x *standIns) is(n Name, handle []byte, end bool) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	h, ok := x.m[n]
	if ok && end {
		delete(x.m, n)
	}
	return ok && h == string(handle)
}

// delta is what is known of the difference between the contents in the
// directory and those of the present version.
type delta struct {
	base kml.Position // what the directory has
	set  extentSet
}

// deltas is kept in memory: without one a file is compared.
type deltas struct {
	mu sync.Mutex
	m  map[kml.OID]*delta
}

// add notes a store whose contents are not in the directory yet. o is the object
// from before it.
func (x *deltas) add(o *Object, rec *kml.Record) {
	x.mu.Lock()
	defer x.mu.Unlock()
	d := x.m[o.OID]
	if d == nil && o.Whole && rec.Base.Pos == o.DataVersion && rec.Extents != nil {
		d = &delta{base: o.DataVersion}
		if x.m == nil {
			x.m = make(map[kml.OID]*delta)
		}
		x.m[o.OID] = d
	}
	if d == nil {
		return
	}
	if rec.Extents == nil {
		delete(x.m, o.OID)
		return
	}
	for _, e := range rec.Extents {
		d.set.add(e.Off, e.Len)
	}
	if rec.Attr.Size < o.Attr.Size {
		d.set.add(rec.Attr.Size, o.Attr.Size-rec.Attr.Size)
	}
}

func (x *deltas) drop(oid kml.OID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.m, oid)
}

func (x *deltas) get(oid kml.OID) (base kml.Position, extents []kml.Extent, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	d := x.m[oid]
	if d == nil {
		return 0, nil, false
	}
	return d.base, d.set.clip(1 << 62), true
}

// ReplicaCounts are what a replica counts from its start on.
type ReplicaCounts struct {
	Aside    int64 `json:"aside"`    // put aside in conflicts
	Reverted int64 `json:"reverted"` // local edits undone
	Skipped  int64 `json:"skipped"`  // owners, xattrs and times this process may not set
	Patched  int64 `json:"patched"`  // large files that were patched where they lie
}

// Counts may be asked for at any time.
func (r *Replica) Counts() ReplicaCounts {
	return ReplicaCounts{r.asides.Load(), r.reverted.Load(), r.skipped.Load(), r.patched.Load()}
}
