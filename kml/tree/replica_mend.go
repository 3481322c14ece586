package tree

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/node"
	"github.com/mezzofs/mezzo/kml"
)

// mendLine obeys "mend WHAT PARENT NAME", an order of who has compared the
// directory with the master's: PARENT is an oid, NAME quoted as in Go, WHAT is data
// or attr.
func (r *Replica) mendLine(rest string) error {
	f := strings.SplitN(rest, " ", 3)
	bad := func(err error) error { return fmt.Errorf("mend %q: %w: %w", rest, err, syscall.EINVAL) }
	if len(f) != 3 || f[0] != "data" && f[0] != "attr" {
		return bad(errors.New("want data or attr, a folder and a name"))
	}
	parent, err := kml.ParseOID(f[1])
	if err != nil {
		return bad(err)
	}
	name, err := strconv.Unquote(f[2])
	if err != nil {
		return bad(err)
	}
	return r.Mend(Name{parent, name}, f[0] == "data")
}

// Mend has what a name holds made what the index says. What is missing is brought,
// what the master does not have is set aside, attributes are set, with the
// master's extended ones. data: the bytes are not those of the version, though
// size and time say so; they are set aside and brought again. It is done when
// nothing is wanted any more.
func (r *Replica) Mend(n Name, data bool) error {
	if r.copying.Load() || r.doubt.Load() {
		return fmt.Errorf("the directory is not certain yet: %w", syscall.EAGAIN)
	}
	root := n.Parent == 0
	if !root {
		if err := checkName(n.Parent, n.Name); err != nil {
			return err
		}
		if err := r.revert(n.Parent, n.Name, false); err != nil {
			return err
		}
	}
	oid := kml.RootOID
	if !root {
		var known bool
		if oid, _, known = r.t.index.Child(n.Parent, n.Name); !known {
			return nil
		}
	}
	if data {
		if err := r.distrust(oid); err != nil {
			return ignore(err, ErrNotFound)
		}
	}
	r.pmu.Lock()
	if r.redress == nil {
		r.redress = make(map[kml.OID]bool)
	}
	r.redress[oid] = true
	r.pmu.Unlock()
	r.lack(oid)
	return nil
}

// distrust notes that the bytes of a file are not what the index takes them for:
// they are compared with the master's, and set aside when it has others.
func (r *Replica) distrust(oid kml.OID) error {
	defer r.t.objs.lock(oid).unlock()
	o, err := r.t.index.Get(oid)
	if err != nil || o.Attr.Mode&unix.S_IFMT != unix.S_IFREG || len(o.Handle) == 0 {
		return err
	}
	r.t.chunks.drop(oid)
	r.deltas.drop(oid)
	return r.t.index.Update(func(b *Batch) error {
		o, err := b.Get(oid)
		if err != nil {
			return err
		}
		n := *o
		n.Whole, n.Fp.Size = false, ^uint64(0) // no file has it: what is replaced is put aside
		return b.Put(&n)
	})
}

// redressing reports whether an object's attributes are to be set to the master's.
func (r *Replica) redressing(oid kml.OID) bool {
	r.pmu.Lock()
	defer r.pmu.Unlock()
	return r.redress[oid]
}

// Redress gives what is in the directory for an object the attributes it has, and
// the extended ones that are the master's.
func (r *Replica) Redress(oid kml.OID, xs []kml.Xattr) error {
	defer r.t.objs.lock(oid).unlock()
	o, err := r.t.index.Get(oid)
	if err == nil {
		err = r.redressLocked(o, xs)
	}
	if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, syscall.ENOENT) {
		return err
	}
	r.pmu.Lock()
	delete(r.redress, oid)
	r.pmu.Unlock()
	return nil
}

func (r *Replica) redressLocked(o *Object, xs []kml.Xattr) error {
	fd, n, err := r.openObject(o)
	if err != nil {
		return ignore(err, errMismatch)
	}
	defer unix.Close(fd)
	p := place{fd: fd}
	have, err := p.xattrs()
	if err != nil {
		return err
	}
	extra, missing := xattrDiff(have, xs)
	for _, name := range extra {
		if err := node.RemoveXattr(node.At{FD: fd}, name); err != nil {
			r.skip("xattr "+name, err)
		}
	}
	var st unix.Statx_t
	if err := statAt(fd, "", &st); err != nil {
		return err
	}
	want := o.Attr
	want.UID, want.GID = r.ownerHere(o.Attr)
	m := differing(kmlAttr(&st), want)
	symlink := o.Attr.Mode&unix.S_IFMT == unix.S_IFLNK
	if o.Attr.Mode&unix.S_IFMT == unix.S_IFREG && !o.Whole {
		m &^= kml.MaskMtime
	}
	at := node.At{FD: fd}
	if symlink { // its own name, not what it leads to
		ref, err := r.folder(n.Parent)
		if err != nil {
			return err
		}
		defer ref.release()
		at = node.At{FD: ref.fd, Name: n.Name}
	}
	if err := node.Dress(at, want, m, missing, symlink, r.forgive()); err != nil {
		return err
	}
	r.reverted.Add(1)
	if err := statAt(fd, "", &st); err != nil {
		return err
	}
	c := change{oid: o.OID, keep: true, lookUp: true, fp: &st}
	if o.Fp.Size == ^uint64(0) {
		c.fp = nil
	}
	return r.t.index.Update(c.note)
}
