package tree

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// create makes dir a fileset and leaves it open. An import that was cut short
// starts over: until it is whole, fileset.json says so.
func create(dir string, o Options) (t *Tree, err error) {
	o.fill()
	o.NoWatch = true // an edit during the import is found by the next opener's scan
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	st, err := CreateState(dir, Fileset{Role: RoleMaster, Epoch: 1, Site: 1, NextSite: 2, Importing: true})
	if err != nil {
		return nil, err
	}
	if t, err = openState(dir, st, o); err != nil {
		return nil, err
	}
	if err := t.begin(); err != nil {
		// The folder is left as it was found.
		return nil, errors.Join(fmt.Errorf("%s: init: %w", dir, err), t.Close(), os.RemoveAll(st.Path()))
	}
	return t, nil
}

// begin starts the first epoch and journals what is in the directory.
func (t *Tree) begin() error {
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return err
	}
	if _, err := t.log.StartEpoch("init", id); err != nil {
		return err
	}
	if err := t.importDir(t.ctx, t.opt.Progress); err != nil {
		return err
	}
	if err := t.commit(t.ctx); err != nil {
		return err
	}
	// An index without a position is one that was lost.
	if err := t.index.Update(func(b *Batch) error {
		b.SetCursor(t.log.End())
		return nil
	}); err != nil {
		return err
	}
	if err := t.index.Flush(); err != nil {
		return err
	}
	t.importing.Store(false)
	return t.state.Update(func(f *Fileset) { f.Importing = false })
}

// adoptRoot gives a new index the root folder, which no record makes.
func (t *Tree) adoptRoot() error {
	old, err := t.index.Get(kml.RootOID)
	if err == nil && len(old.Handle) > 0 || err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	var st unix.Statx_t
	if err := unix.Statx(t.rootfd, "", unix.AT_EMPTY_PATH, statxMask, &st); err != nil {
		return err
	}
	h, err := HandleAt(t.rootfd, "")
	if err != nil {
		return fmt.Errorf("the file system of this folder gives no file handles, which identity is built on: %w", err)
	}
	a := kmlAttr(&st)
	return t.index.Update(func(b *Batch) error {
		if old != nil {
			return noteInode(b, kml.RootOID, &st, h)
		}
		return b.Put(&Object{OID: kml.RootOID, Attr: a, Parent: kml.RootOID, Ino: st.Ino, Handle: h,
			Fp: fingerprint(&st), Btime: nsOf(st.Btime), Ctime: nsOf(st.Ctime)})
	})
}

// reconcileObject looks again at the names where an object should be.
func (t *Tree) reconcileObject(ctx context.Context, o *Object) error {
	names := t.index.Names(o.OID)
	for _, n := range names {
		if err := t.reconcileName(ctx, n.Parent, n.Name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
