package tree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
)

// importBatch is how many records an import appends at a time.
const importBatch = 2048

// importer journals a directory that becomes a fileset: one record an object,
// in the order of a walk from the root.
type importer struct {
	t        *Tree
	ctx      context.Context
	progress func(files int64)
	files    int64
	recs     []*kml.Record
	notes    []imported
	links    map[uint64]kml.OID // inodes with several names, by number
}

// imported is what the index gets besides the record.
type imported struct {
	st     unix.Statx_t
	handle []byte
}

func (t *Tree) importDir(ctx context.Context, progress func(files int64)) error {
	if progress == nil {
		progress = func(int64) {}
	}
	im := &importer{t: t, ctx: ctx, progress: progress, links: make(map[uint64]kml.OID)}
	fd, err := unix.Openat(t.rootfd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := im.root(fd); err != nil {
		return err
	}
	if err := im.dir(fd, kml.RootOID, ""); err != nil {
		return err
	}
	if err := im.flush(); err != nil {
		return err
	}
	progress(im.files)
	return nil
}

// root journals the root's own attributes, which no record that makes it brings.
func (im *importer) root(fd int) error {
	var st unix.Statx_t
	if err := statAt(fd, "", &st); err != nil {
		return err
	}
	xs, err := place{fd: fd}.xattrsOf(fd)
	if err != nil {
		return err
	}
	r := im.t.record(nil, kml.OpSetattr)
	r.OID, r.Attr, r.Mask = kml.RootOID, kmlAttr(&st), kml.MaskMode|kml.MaskUID|kml.MaskGID|kml.MaskMtime
	im.recs, im.notes = append(im.recs, r), append(im.notes, imported{})
	for _, x := range xs {
		r := im.t.record(nil, kml.OpSetxattr)
		r.OID, r.Name, r.Value = kml.RootOID, x.Name, x.Value
		im.recs, im.notes = append(im.recs, r), append(im.notes, imported{})
	}
	return nil
}

// dir imports what is in a folder. Its descriptor stays open while its
// sub-folders are imported, so the depth of a tree is bounded by the limit on
// open files.
func (im *importer) dir(fd int, oid kml.OID, path string) error {
	es, err := readNames(fd)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, e := range es {
		if oid == kml.RootOID && e.Name == ExtDirName {
			continue
		}
		if err := im.ctx.Err(); err != nil {
			return err
		}
		if err := im.entry(fd, oid, e.Name, path+"/"+e.Name); err != nil {
			return err
		}
	}
	return nil
}

func (im *importer) entry(dirfd int, parent kml.OID, name, path string) error {
	p, st, handle, err := lookAtName(dirfd, name)
	if errors.Is(err, syscall.ENOENT) {
		return nil // removed while we look
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer unix.Close(p.fd)
	if st.Dev_major != im.t.dev[0] || st.Dev_minor != im.t.dev[1] {
		im.t.logger.Warn("not imported: another file system is mounted there", "path", path)
		return nil
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if isDir && name == ExtDirName {
		if _, err := readFileset(p.path()); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s%s: %w", im.t.dir, path, ErrHolds)
		}
	}
	r := im.t.record(nil, opFor(uint32(st.Mode)))
	r.Parent, r.Name = parent, name
	r.UID, r.GID = st.Uid, st.Gid
	if first, ok := im.links[st.Ino]; ok && !isDir && st.Nlink > 1 {
		r.Op, r.OID = kml.OpLink, first
		return im.add(r, imported{})
	}
	if r.OID, err = im.t.state.MintOID(); err != nil {
		return err
	}
	if !isDir && st.Nlink > 1 {
		im.links[st.Ino] = r.OID
	}
	r.Attr = kmlAttr(&st)
	if r.Op == kml.OpSymlink {
		if r.Target, err = readlinkFd(p.fd); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	if r.Xattrs, err = p.xattrs(); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := im.add(r, imported{st, handle}); err != nil {
		return err
	}
	if !isDir {
		return nil
	}
	fd, err := unix.Open(p.path(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer unix.Close(fd)
	return im.dir(fd, r.OID, path)
}

func (im *importer) add(r *kml.Record, note imported) error {
	im.recs, im.notes = append(im.recs, r), append(im.notes, note)
	im.files++
	if len(im.recs) < importBatch {
		return nil
	}
	im.progress(im.files)
	return im.flush()
}

func (im *importer) flush() error {
	if len(im.recs) == 0 {
		return nil
	}
	fault.Point("tree.import")
	t := im.t
	t.jmu.Lock()
	defer t.jmu.Unlock()
	for _, r := range im.recs {
		t.seq++
		r.Origin = kml.Origin{Site: t.site, Seq: t.seq}
	}
	if err := t.log.Append(im.recs...); err != nil {
		return err
	}
	err := t.index.Update(func(b *Batch) error {
		for i, r := range im.recs {
			if _, err := applyRecord(b, r, false); err != nil {
				return err
			}
			if n := &im.notes[i]; n.handle != nil {
				if err := noteInode(b, r.OID, &n.st, n.handle); err != nil {
					return err
				}
			}
			b.SetCursor(r.Pos)
		}
		return nil
	})
	t.fresh.all = true
	im.recs, im.notes = im.recs[:0], im.notes[:0]
	return err
}
