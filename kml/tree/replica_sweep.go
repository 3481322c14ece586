package tree

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// End takes away what the snapshot does not have, gives folders their times and
// makes the copy durable. From then on the replica follows the log.
func (c *Copy) End() error {
	r := c.r
	if end := r.t.log.End(); end != c.pos {
		return fmt.Errorf("log was copied to %s, the snapshot is of %s: %w", end, c.pos, kml.ErrHistoryCut)
	}
	if err := c.sweep(limboOID, 0); err != nil {
		return err
	}
	if err := c.sweep(kml.RootOID, 0); err != nil {
		return err
	}
	_, crc := r.t.log.EndAndCRC()
	if err := r.t.index.Update(func(b *Batch) error {
		b.SetCursor(c.pos)
		b.SetCursorCRC(crc)
		return nil
	}); err != nil {
		return err
	}
	if err := r.commit(); err != nil {
		return err
	}
	if err := r.t.index.Flush(); err != nil {
		return err
	}
	if err := r.t.state.Update(func(f *Fileset) { f.Copying, f.Cut, f.Epoch = false, false, c.pos.Epoch() }); err != nil {
		return err
	}
	if r.t.state.Copied {
		if err := r.t.state.claim(); err != nil {
			return err
		}
	}
	r.copying.Store(false)
	r.advanced()
	return r.serve()
}

// sweep takes away what the copy has not seen in a folder and below.
func (c *Copy) sweep(oid kml.OID, depth int) error {
	r := c.r
	if depth > maxDepth {
		return syscall.ELOOP
	}
	err := r.eachChild(oid, func(n Name, e NameEntry, o *Object) error {
		switch {
		case o == nil || e.Known != c.pos || oid == limboOID:
			return c.stale(n, e.OID, o)
		case o.Attr.Mode&unix.S_IFMT == unix.S_IFDIR:
			return c.sweep(e.OID, depth+1)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if oid == limboOID {
		return nil
	}
	if err := r.sweepLocal(oid); err != nil {
		r.trouble(oid, r.Path(oid), "list", err)
	}
	r.folderTime(oid)
	return nil
}

// eachChild calls f for each name that the index has in a folder, with the object,
// nil when there is none. Names that are changed meanwhile may be missed.
func (r *Replica) eachChild(oid kml.OID, f func(n Name, e NameEntry, o *Object) error) error {
	for after := ""; ; {
		es, err := r.t.index.Children(oid, after, 512)
		if err != nil || len(es) == 0 {
			return err
		}
		for _, e := range es {
			o, err := r.t.index.Get(e.OID)
			if err = ignore(err, ErrNotFound); err != nil {
				return err
			}
			if err := f(Name{oid, e.Name}, e, o); err != nil {
				return err
			}
		}
		after = es[len(es)-1].Name
	}
}

// stale takes away a name that the snapshot does not have.
func (c *Copy) stale(n Name, oid kml.OID, o *Object) error {
	r := c.r
	gone := o == nil || o.Known != c.pos
	if c.cut && gone && o != nil {
		if err := c.keepLost(n, o); err != nil {
			r.trouble(oid, r.Path(oid), "put aside", err)
		}
	} else if o != nil {
		var err error
		if gone {
			for _, name := range append(r.t.index.Names(oid), n) {
				err = errors.Join(err, r.dropTree(name, o))
			}
		} else {
			err = r.remove(n, oid)
		}
		if err != nil {
			r.trouble(oid, r.Path(oid), "remove", err)
		}
	}
	return r.t.index.Update(func(b *Batch) error {
		b.DelName(n, c.pos)
		if gone && o != nil {
			return c.forget(b, oid, 0)
		}
		return dropLink(b, oid, n)
	})
}

// keepLost puts aside what was the master's before its history was cut.
func (c *Copy) keepLost(n Name, o *Object) error {
	r := c.r
	if len(o.Handle) == 0 || !r.onDiskAs(n, o) {
		return nil
	}
	ref, err := r.folder(n.Parent)
	if err != nil {
		return nil
	}
	defer ref.release()
	r.t.dirs.forget(o.OID)
	return r.aside(ref.fd, n.Name, n, lostWhy)
}

const lostWhy = "not in the master's history any more, which was cut"

// forget drops an object and all below it from the index.
func (c *Copy) forget(b *Batch, oid kml.OID, depth int) error {
	o, err := b.Get(oid)
	if err != nil || o.Known == c.pos || depth > maxDepth {
		return ignore(err, ErrNotFound)
	}
	for _, e := range b.Children(oid, "", 1<<30) {
		b.DelName(Name{oid, e.Name}, c.pos)
		if err := c.forget(b, e.OID, depth+1); err != nil {
			return err
		}
	}
	for _, n := range b.Names(oid) {
		b.SetLink(oid, n, false)
	}
	b.Delete(oid)
	return nil
}

// sweepLocal sets aside what only this host has in a folder.
func (r *Replica) sweepLocal(oid kml.OID) error {
	ref, err := r.folder(oid)
	if err != nil {
		return nil
	}
	defer ref.release()
	return r.setEntriesAside(ref.fd, ".", oid, "not on the master", func(fd int, name string) bool {
		if oid == kml.RootOID && name == ExtDirName {
			return false
		}
		_, _, known := r.t.index.Child(oid, name)
		return !known && !r.mounted(fd, name)
	})
}

// setEntriesAside sets aside what is in the folder name below dirfd, which is oid
// to the index, and which says so.
func (r *Replica) setEntriesAside(dirfd int, name string, oid kml.OID, why string, which func(fd int, name string) bool) error {
	fd, err := unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	es, err := readNames(fd)
	if err != nil {
		return err
	}
	for _, e := range es {
		if !which(fd, e.Name) {
			continue
		}
		if err := r.setAside(fd, Name{oid, e.Name}, why); err != nil && !errors.Is(err, syscall.ENOENT) {
			return err
		}
	}
	return nil
}

// mounted reports whether another file system is mounted at a name.
func (r *Replica) mounted(dirfd int, name string) bool {
	var st unix.Statx_t
	err := unix.Statx(dirfd, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st)
	return err == nil && (st.Dev_major != r.t.dev[0] || st.Dev_minor != r.t.dev[1])
}

// dropTree takes an object, and what is below it, from the directory. The index
// keeps it as not being there. What a local program wrote is set aside.
func (r *Replica) dropTree(n Name, o *Object) error {
	return r.dropBelow(n, o, 0)
}

func (r *Replica) dropBelow(n Name, o *Object, depth int) error {
	if depth > maxDepth {
		return syscall.ELOOP
	}
	if len(o.Handle) == 0 {
		return nil
	}
	if o.Attr.Mode&unix.S_IFMT == unix.S_IFDIR {
		err := r.eachChild(o.OID, func(n Name, _ NameEntry, k *Object) error {
			if k == nil {
				return nil
			}
			return r.dropBelow(n, k, depth+1)
		})
		if err != nil {
			return err
		}
	}
	if err := r.remove(n, o.OID); err != nil {
		return err
	}
	if o.Attr.Nlink > 1 && o.Attr.Mode&unix.S_IFMT != unix.S_IFDIR {
		if fd, _, err := r.openObject(o); err == nil { // it has another name
			unix.Close(fd)
			return nil
		}
	}
	return r.t.index.Update((&change{oid: o.OID}).note)
}

// findLacking tells of everything that is missing in the directory, and takes
// from it what is no longer wanted there.
func (r *Replica) findLacking() {
	defer close(r.looked)
	if err := r.lackingBelow(kml.RootOID, 0); err != nil && r.t.ctx.Err() == nil {
		r.t.logger.Warn("looking for what is missing did not end", "fileset", r.t.dir, "err", err)
	}
}

func (r *Replica) lackingBelow(oid kml.OID, depth int) error {
	if depth > maxDepth {
		return syscall.ELOOP
	}
	return r.eachChild(oid, func(n Name, _ NameEntry, o *Object) error {
		if err := r.t.ctx.Err(); err != nil || o == nil {
			return err
		}
		switch {
		case !r.kept(n, &o.Attr):
			if err := r.dropTree(n, o); err != nil {
				r.trouble(o.OID, r.Path(o.OID), "remove", err)
			}
		case lacking(o):
			r.lack(o.OID)
		case o.Attr.Mode&unix.S_IFMT != unix.S_IFDIR && o.Attr.Nlink > 1 && !r.onDiskAs(n, o):
			if err := r.linkName(n, o, nil); err != nil { // it was not wanted under that name
				r.trouble(o.OID, r.Path(n.Parent)+"/"+n.Name, "link", err)
			}
		}
		if o.Attr.Mode&unix.S_IFMT == unix.S_IFDIR {
			return r.lackingBelow(o.OID, depth+1)
		}
		return nil
	})
}

// lacking reports whether something of an object is missing in the directory.
func lacking(o *Object) bool {
	return len(o.Handle) == 0 || o.Attr.Mode&unix.S_IFMT == unix.S_IFREG && !o.Whole
}

// Want is what is missing of an object.
type Want struct {
	OID     kml.OID
	Parent  kml.OID
	Path    string
	Mode    uint32
	Size    uint64       // of the present version
	Version kml.Position // whose contents are missing
	// Here: an older version, or something like it, is in the directory.
	Here bool
	// Known: it is version Base, and Extents are where the present one may
	// differ from it.
	Known   bool
	Base    kml.Position
	Extents []kml.Extent
	// NoFolder: the object's folder is missing too.
	NoFolder bool
	// Redress: it is here, and Redress is to be called with its xattrs.
	Redress bool
}

// Want says what is missing of an object; nil when nothing is, or when it is not
// to be here.
func (r *Replica) Want(oid kml.OID) (*Want, error) {
	o, err := r.t.index.Get(oid)
	if errors.Is(err, ErrNotFound) {
		r.troubles.clear(oid)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !lacking(o) && r.redressing(oid) {
		return &Want{OID: oid, Parent: o.Parent, Path: r.Path(oid), Mode: o.Attr.Mode, Here: true, Redress: true}, nil
	}
	if oid == kml.RootOID || !lacking(o) || o.Parent == 0 {
		r.troubles.clear(oid)
		return nil, nil
	}
	names := r.keptNames(r.t.index.Names(oid), &o.Attr)
	if len(names) == 0 {
		r.troubles.clear(oid)
		return nil, nil
	}
	if r.wasBrought(o) {
		r.troubles.clear(oid)
		return nil, nil
	}
	up := names[0].Parent
	w := &Want{OID: oid, Parent: up, Path: r.Path(oid), Mode: o.Attr.Mode, Size: o.Attr.Size, Version: o.DataVersion, Here: len(o.Handle) > 0}
	if w.Base, w.Extents, w.Known = r.deltas.get(oid); w.Known {
		w.Known = w.Here && r.untouched(o)
	}
	if p, err := r.t.index.Get(up); err == nil && up != kml.RootOID && len(p.Handle) == 0 {
		w.NoFolder = true
	}
	return w, nil
}

// wasBrought looks whether a file that is wanted lies there already: it was
// brought just before a kill.
func (r *Replica) wasBrought(o *Object) bool {
	if o.Attr.Mode&unix.S_IFMT != unix.S_IFREG || o.Attr.Size == 0 {
		return false
	}
	n := Name{o.Parent, o.Name}
	defer r.t.names.lock(n.Parent).unlock()
	defer r.t.objs.lock(o.OID).unlock()
	ref, err := r.folder(n.Parent)
	if err != nil {
		return false
	}
	defer ref.release()
	p, st, h, err := lookAtName(ref.fd, n.Name)
	if err != nil {
		return false
	}
	defer unix.Close(p.fd)
	return r.t.objectFor(&st, h) == nil && !r.standIns.is(n, h, false) && r.brought(o.OID, p, &st, h)
}

// OpenHere opens the file that is in the directory for an object, to read, or
// with write to be patched. The caller closes it.
func (r *Replica) OpenHere(oid kml.OID, write bool) (*os.File, error) {
	o, err := r.t.index.Get(oid)
	if err != nil {
		return nil, err
	}
	fd, n, err := r.openObject(o)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	flags := unix.O_RDONLY
	if write {
		flags = unix.O_RDWR
	}
	real, err := unix.Open(place{fd: fd}.path(), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(real), n.Name), nil
}
