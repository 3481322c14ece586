package p9srv

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"syscall"

	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/p9srv/wire"
	"golang.org/x/sys/unix"
)

// This file is attributes and folders in 9P2000 and 9P2000.u.

func (c *call) oldStat() error {
	var m wire.Tstat
	if err := m.Decode(c.body); err != nil {
		return err
	}
	q, _, a, err := c.attr(c.a, p9.AttrMaskAll)
	if err != nil {
		return err
	}
	st, err := c.statOf(c.a.file, q, &a, c.a.old.name())
	if err != nil {
		return err
	}
	c.out = (&wire.Rstat{Stat: st}).Append(c.out, c.tag)
	return nil
}

// statOf is a file's attributes in the session's dialect.
func (c *call) statOf(f p9.File, q p9.QID, a *p9.Attr, name string) (wire.Stat, error) {
	mode := uint32(a.Mode)
	id := func(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
	st := wire.Stat{
		QID: q, Mode: mode & 0o777, Atime: uint32(a.ATimeSeconds), Mtime: uint32(a.MTimeSeconds), Length: a.Size,
		Name: name, UID: id(uint32(a.UID)), GID: id(uint32(a.GID)), MUID: id(uint32(a.UID)),
		NUID: a.UID, NGID: a.GID, NMUID: a.UID, Plain: c.s.dialect == dialectPlain,
	}
	st.QID.Type = typeOf(q, *a)
	if a.Mode.IsDir() {
		st.Mode |= wire.DMDir
		st.Length = 0
	}
	if st.Plain {
		return st, nil
	}
	for _, b := range [...]struct{ bit, dm uint32 }{
		{unix.S_ISUID, wire.DMSetUID}, {unix.S_ISGID, wire.DMSetGID}, {unix.S_ISVTX, wire.DMSetVTX},
	} {
		if mode&b.bit != 0 {
			st.Mode |= b.dm
		}
	}
	var err error
	switch mode & unix.S_IFMT {
	case unix.S_IFLNK:
		st.Mode |= wire.DMSymlink
		st.Extension, err = c.bind(f).Readlink()
	case unix.S_IFIFO:
		st.Mode |= wire.DMNamedPipe
	case unix.S_IFSOCK:
		st.Mode |= wire.DMSocket
	case unix.S_IFCHR, unix.S_IFBLK:
		st.Mode |= wire.DMDevice
		kind := "c"
		if mode&unix.S_IFMT == unix.S_IFBLK {
			kind = "b"
		}
		st.Extension = fmt.Sprintf("%s %d %d", kind, unix.Major(uint64(a.RDev)), unix.Minor(uint64(a.RDev)))
	case unix.S_IFREG:
		// How Linux is told the count of links.
		st.Extension = fmt.Sprintf("HARDLINKCOUNT %d", uint64(a.NLink))
	}
	return st, err
}

// oldReaddir is Tread of a folder: whole Stats, as many as fit.
func (c *call) oldReaddir(m *wire.Tread) error {
	sl := c.a
	next := sl.old
	switch m.Offset {
	case 0:
		next.pos, next.cookie = 0, 0
	case next.pos:
	default:
		return syscall.EINVAL
	}
	want := c.payloadLimit(m.Count)
	var data []byte
	full := false
	cookie := next.cookie
	for !full {
		var names []p9.Dirent
		err := c.entries(sl, cookie, c.s.msize, func(d p9.Dirent) bool {
			names = append(names, d)
			return len(names) < 64
		})
		if err != nil {
			return err
		}
		if len(names) == 0 {
			break
		}
		for _, d := range names {
			b, err := c.entryStat(sl, d.Name)
			if err != nil {
				return err
			}
			if full = len(data)+len(b) > want; full {
				break
			}
			data = append(data, b...)
			cookie = d.Offset
		}
	}
	if full && len(data) == 0 {
		return syscall.EINVAL
	}
	next.pos += uint64(len(data))
	next.cookie = cookie
	sl.old = next
	c.out = (&wire.Rread{Data: data}).Append(c.out, c.tag)
	return nil
}

// entryStat is the Stat of an entry of a folder; nothing for one that is not
// shown or gone by now.
func (c *call) entryStat(sl *slot, name string) ([]byte, error) {
	if name == "." || name == ".." {
		return nil, nil
	}
	w := walker{c: c, from: &sl.fidState}
	w.run([]string{name})
	if err := w.missed([]string{name}); err != nil {
		if errors.Is(err, ErrWouldBlock) {
			return nil, err
		}
		return nil, nil
	}
	defer w.drop()
	q, _, a, err := c.bind(w.file).GetAttr(p9.AttrMaskAll)
	if err != nil {
		return nil, err
	}
	st, err := c.statOf(w.file, q, &a, name)
	if err != nil {
		return nil, err
	}
	return wire.AppendStat(nil, &st), nil
}

func (c *call) oldWstat() error {
	var m wire.Twstat
	if err := m.Decode(c.body); err != nil {
		return err
	}
	if err := c.wstat(&m.Stat); err != nil {
		return err
	}
	c.out = (&wire.Rwstat{}).Append(c.out, c.tag)
	return nil
}

func (c *call) wstat(st *wire.Stat) error {
	valid, attr, err := setattrOf(st)
	if err != nil {
		return err
	}
	sl := c.a
	rename := st.Name != "" && st.Name != sl.old.name()
	switch {
	case sl.isDir() && valid.Size:
		return syscall.EISDIR
	case rename:
		if err := checkName(st.Name); err != nil {
			return err
		}
	case valid == p9.SetAttrMask{} && st.Name == "" && sl.opened:
		return c.syncFile(sl, false)
	}
	if valid != (p9.SetAttrMask{}) {
		if err := c.setAttr(sl, valid, attr); err != nil {
			return err
		}
	}
	if !rename {
		return nil
	}
	if err := c.renameTo(st.Name); err != nil {
		return err
	}
	if n := len(sl.old.path); n > 0 {
		sl.old.path = append(sl.old.path[:n-1:n-1], st.Name)
	}
	return nil
}

// setattrOf is what of a Stat is to be set.
func setattrOf(st *wire.Stat) (valid p9.SetAttrMask, a p9.SetAttr, err error) {
	const same = math.MaxUint32
	if st.Mode != same {
		valid.Permissions, a.Permissions = true, oldPermissions(st.Mode)
	}
	if st.Atime != same {
		valid.ATime, valid.ATimeNotSystemTime, a.ATimeSeconds = true, true, uint64(st.Atime)
	}
	if st.Mtime != same {
		valid.MTime, valid.MTimeNotSystemTime, a.MTimeSeconds = true, true, uint64(st.Mtime)
	}
	if st.Length != math.MaxUint64 {
		valid.Size, a.Size = true, st.Length
	}
	a.UID, a.GID = p9.NoUID, p9.NoGID
	if !st.Plain {
		a.UID, a.GID = st.NUID, st.NGID
	}
	for _, n := range []struct {
		text string
		id   *uint32
	}{{st.UID, (*uint32)(&a.UID)}, {st.GID, (*uint32)(&a.GID)}} {
		if n.text == "" || *n.id != NoID {
			continue
		}
		v, err := strconv.ParseUint(n.text, 10, 32)
		if err != nil {
			return valid, a, syscall.EINVAL
		}
		*n.id = uint32(v)
	}
	valid.UID, valid.GID = a.UID != p9.NoUID, a.GID != p9.NoGID
	return valid, a, nil
}

// renameTo renames a fid in its folder; what has the new name is replaced, as Linux
// expects.
func (c *call) renameTo(name string) error {
	f := c.a
	if f.place == nil {
		r, ok := f.file.(Renamer)
		if !ok {
			return syscall.EOPNOTSUPP
		}
		return r.RenameTo(c.ctx, name)
	}
	t := f.place.tree
	t.names.Lock()
	defer t.names.Unlock()
	parent, old, err := f.entry()
	if err != nil {
		return err
	}
	if err := c.bind(parent.file).RenameAt(old, parent.file, name); err != nil {
		return err
	}
	parent.renamed(old, parent, name)
	return nil
}
