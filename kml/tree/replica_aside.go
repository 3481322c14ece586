package tree

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Aside is something that was only in this directory and had to go from its
// place: the file or folder of that name in .mezzo/conflicts.
type Aside struct {
	Time time.Time `json:"time"`
	Path string    `json:"path"` // where it was
	Why  string    `json:"why"`
	Kept string    `json:"kept"` // its name in the folder of conflicts
}

const asideList = "list.jsonl" // in conflicts: a line of JSON each

// setAside takes away what a name holds and should not: to the folder of conflicts
// when only this host has it. What is the replica's own goes, and is brought
// again where the master has it.
func (r *Replica) setAside(dirfd int, n Name, why string) error {
	return r.takeAway(dirfd, n.Name, n, why)
}

// takeAway is setAside for what n held and is by now from in the folder dirfd.
func (r *Replica) takeAway(dirfd int, from string, n Name, why string) error {
	p, st, h, err := lookAtName(dirfd, from)
	if err != nil {
		return err
	}
	defer unix.Close(p.fd)
	o := r.own(n, &st, h)
	if o == nil {
		return r.aside(dirfd, from, n, why)
	}
	if r.folds(dirfd, n, o, &st, h) {
		return errFolds
	}
	if err := unix.Unlinkat(dirfd, from, 0); err != nil || string(o.Handle) != string(h) {
		return err
	}
	if fd, _, err := r.openObject(o); err == nil {
		unix.Close(fd)
		return nil // it has another name
	}
	return r.lose(o.OID)
}

// errFolds is a name that the file system takes for another one.
var errFolds = fmt.Errorf("the file system takes it for a name that is there: %w", syscall.EEXIST)

// folds reports whether what n shows, in the folder dirfd, is there under another
// name of its own: the file system does not tell the two apart.
func (r *Replica) folds(dirfd int, n Name, o *Object, st *unix.Statx_t, h []byte) bool {
	if st.Nlink != 1 {
		return false
	}
	for _, m := range r.t.index.Names(o.OID) {
		if m.Parent != n.Parent || m.Name == n.Name {
			continue
		}
		if got, err := HandleAt(dirfd, m.Name); err == nil && string(got) == string(h) {
			return true
		}
	}
	return false
}

// foldsOther is folds for a name that is to become o's.
func (r *Replica) foldsOther(dirfd int, n Name, o *Object) bool {
	p, st, h, err := lookAtName(dirfd, n.Name)
	if err != nil {
		return false
	}
	unix.Close(p.fd)
	k := r.t.objectFor(&st, h)
	return k != nil && k.OID != o.OID && r.folds(dirfd, n, k, &st, h)
}

// own is the object whose bytes, as this replica wrote them, are what n holds:
// nobody else's work is lost with that name. It is nil for a folder.
func (r *Replica) own(n Name, st *unix.Statx_t, h []byte) *Object {
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil
	}
	if o := r.t.objectFor(st, h); o != nil {
		if st.Mode&unix.S_IFMT == unix.S_IFREG && (st.Size != o.Fp.Size || nsOf(st.Mtime) != o.Fp.Mtime) {
			return nil
		}
		return o
	}
	// It was brought before a kill, which the index never heard of.
	oid, _, known := r.t.index.Child(n.Parent, n.Name)
	if !known {
		return nil
	}
	o, err := r.t.index.Get(oid)
	if err != nil || !looksLike(o, st) || !lacking(o) && st.Mtime.Nsec == 0 {
		return nil
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK && (st.Size != o.Attr.Size || nsOf(st.Mtime) != o.Attr.Mtime) {
		return nil
	}
	return o
}

// aside moves what from in the folder dirfd is to the folder of conflicts. n says
// where it was.
func (r *Replica) aside(dirfd int, from string, n Name, why string) error {
	base := n.Name
	now := r.t.now().UTC()
	kept := fmt.Sprintf("%s-%d-", now.Format("20060102T150405.000"), r.seq.Add(1))
	if len(kept)+len(base) > 255 {
		base = base[len(kept)+len(base)-255:]
	}
	kept += base
	if err := unix.Renameat(dirfd, from, unix.AT_FDCWD, r.t.state.Path("conflicts", kept)); err != nil {
		return err
	}
	path := n.Name
	if up := r.Path(n.Parent); up != "" {
		path = up + "/" + n.Name
	}
	a := Aside{Time: now, Path: path, Why: why, Kept: kept}
	r.t.logger.Warn("something that only this host has was put aside", "fileset", r.t.dir, "path", path, "why", why, "kept", kept)
	r.asides.Add(1)
	return r.noteAside(a)
}

func (r *Replica) noteAside(a Aside) error {
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(r.t.state.Path("conflicts", asideList), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	return errors.Join(err, f.Close())
}
