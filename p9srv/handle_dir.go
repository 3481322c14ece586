package p9srv

import (
	"errors"
	"io"
	"syscall"

	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// dirState is how far an open folder has been read. Files give their entries
// in lots of their own size: what did not fit waits here.
type dirState struct {
	left p9.Dirents // read and not sent
	next uint64     // offset that left goes on from
	used bool       // something was read
	file p9.File    // a fresh one, when the fid's was read through; nil: the fid's
}

// shortDir is the room for a listing in place: a long one is given up.
const shortDir = 16 << 10

func (c *call) readdir() error {
	var m wire.Treaddir
	if err := m.Decode(c.body); err != nil {
		return err
	}
	sl := c.a
	switch {
	case !sl.opened:
		return syscall.EBADF
	case !sl.isDir():
		return syscall.ENOTDIR
	}
	want := c.payloadLimit(m.Count)
	f, fills := c.bind(sl.file).(DirFiller)
	room := want
	if fills && c.ctx == nil {
		room = min(room, shortDir)
	}
	c.reserve(wire.ReadOverhead + room)
	var p wire.DirPacker
	p.Begin(c.out, c.tag, want)
	var err error
	if fills {
		err = f.FillDir(m.Offset, &p)
	} else {
		err = c.entries(sl, m.Offset, m.Count, p.Add)
	}
	if err == nil && p.Empty() && p.Full() {
		err = syscall.EINVAL
	}
	if err != nil && (p.Empty() || errors.Is(err, ErrWouldBlock)) {
		c.out = p.Abort()
		return err
	}
	c.out = p.Finish()
	return nil
}

// entries calls add for the entries from offset on, until there are no more or
// add wants no more.
func (c *call) entries(sl *slot, offset uint64, count uint32, add func(p9.Dirent) bool) error {
	f := c.bind(sl.file)
	// The bound File first: it knows that it may wait.
	dr, ok := f.(DirReader)
	if !ok {
		dr, ok = sl.file.(DirReader)
	}
	if ok {
		ctx := c.s.ctx
		if c.ctx != nil {
			ctx = c.ctx
		}
		return dr.ReadDirContext(ctx, offset, func(d Dirent) bool {
			return add(p9.Dirent{QID: d.QID, Offset: d.Offset, Type: p9.QIDType(d.Type), Name: d.Name})
		})
	}
	sl.rlock()
	defer sl.runlock()
	if sl.gone() {
		return syscall.ENOENT
	}
	if sl.dir == nil {
		sl.dir = &dirState{}
	}
	d := sl.dir
	switch {
	case offset == 0 && d.used:
		// Many Files can be read only once: go back with a fresh one.
		if err := d.rewind(c, sl); err != nil {
			return err
		}
	case offset != d.next:
		d.left = nil
	}
	d.next = offset
	if d.file != nil {
		f = c.bind(d.file)
	}
	for {
		for len(d.left) > 0 {
			e := d.left[0]
			e.Type = p9.QIDType(direntType(e))
			if !add(e) {
				return nil
			}
			d.next = e.Offset
			d.left = d.left[1:]
		}
		d.used = true
		lot, err := f.Readdir(d.next, count)
		if len(lot) == 0 {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return err
		}
		d.left = lot
	}
}

// direntType is the d_type of an entry whose File speaks QID types.
func direntType(d p9.Dirent) uint8 {
	switch t := d.Type | d.QID.Type; {
	case t&p9.TypeDir != 0:
		return wire.DTDir
	case t&p9.TypeSymlink != 0:
		return wire.DTLink
	case t&p9.TypeAppendOnly != 0:
		return wire.DTUnknown
	}
	return wire.DTRegular
}

// rewind opens a folder anew.
func (d *dirState) rewind(c *call, sl *slot) error {
	_, f, err := c.bind(sl.file).Walk(nil)
	if err != nil {
		return err
	}
	if _, _, err := c.bind(f).Open(sl.flags); err != nil {
		return closeWith(err, f, nil)
	}
	err = d.close()
	*d = dirState{used: true, file: f}
	return err
}

func (d *dirState) close() error {
	if d == nil || d.file == nil {
		return nil
	}
	return d.file.Close()
}
