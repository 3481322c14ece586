package p9srv

import (
	"errors"
	"io"
	"math"
	"syscall"

	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/p9srv/wire"
	"golang.org/x/sys/unix"
)

func (c *call) open() error {
	var m wire.Tlopen
	if err := m.Decode(c.body); err != nil {
		return err
	}
	sl := c.a
	switch {
	case sl.opened:
		return syscall.EBUSY
	case sl.qid.Type&p9.TypeSymlink != 0:
		return syscall.ELOOP
	case sl.isDir() && m.Flags.Mode() != p9.ReadOnly:
		return syscall.EISDIR
	}
	// A fid exists already: these two are Tlcreate's.
	flags := m.Flags &^ (unix.O_CREAT | unix.O_EXCL)
	q, iounit, err := c.openFile(sl, flags)
	if err != nil {
		return err
	}
	sl.opened, sl.flags = true, flags
	c.out = (&wire.Rlopen{QID: q, IOUnit: iounit}).Append(c.out, c.tag)
	return nil
}

func (c *call) openFile(sl *slot, flags p9.OpenFlags) (p9.QID, uint32, error) {
	if sl.rlockIO() {
		defer sl.runlock()
	}
	if sl.gone() {
		return p9.QID{}, 0, syscall.ENOENT
	}
	return c.bind(sl.file).Open(flags)
}

func (c *call) create() error {
	var m wire.Tlcreate
	if err := m.Decode(c.body); err != nil {
		return err
	}
	if err := c.creatable(m.Name); err != nil {
		return err
	}
	f, pl, q, iounit, err := c.createFile(&m)
	if err != nil {
		return err
	}
	c.become(f, pl, q)
	c.a.opened, c.a.flags = true, m.Flags
	c.out = (&wire.Rlcreate{QID: q, IOUnit: iounit}).Append(c.out, c.tag)
	return nil
}

// creatable says whether the fid is a folder in which name can be made.
func (c *call) creatable(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if c.a.opened {
		return syscall.EBUSY
	}
	return checkFolder(c.a)
}

// become makes the fid one of what was made in its folder.
func (c *call) become(f p9.File, pl *place, q p9.QID) {
	from := c.a.fidState
	_ = closeFile(c.s.ctx, from.file, from.place)
	c.a.set(f, pl, &from, q)
}

func (c *call) createFile(m *wire.Tlcreate) (p9.File, *place, p9.QID, uint32, error) {
	if err := c.s.srv.opts.mayHave(m.Mode & permissions); err != nil {
		return nil, nil, p9.QID{}, 0, err
	}
	sl := c.a
	sl.lock()
	defer sl.unlock()
	if sl.gone() {
		return nil, nil, p9.QID{}, 0, syscall.ENOENT
	}
	f, q, iounit, err := c.bind(sl.file).Create(m.Name, m.Flags, m.Mode&permissions, c.uid(), m.GID)
	if err != nil {
		return nil, nil, p9.QID{}, 0, err
	}
	var pl *place
	if sl.place != nil {
		pl = sl.place.child(m.Name, f)
	}
	return f, pl, q, iounit, nil
}

// permissions are the bits of a mode that what is made can have; the type is
// said by the message.
const permissions p9.FileMode = 0o7777

// uid is who makes things through c.
func (c *call) uid() p9.UID { return p9.UID(c.a.user.UID) }

// payloadLimit is how much data an answer to a read may hold.
func (c *call) payloadLimit(count uint32) int {
	return int(min(count, c.s.msize-wire.ReadOverhead))
}

func (c *call) read() error {
	var m wire.Tread
	if err := m.Decode(c.body); err != nil {
		return err
	}
	sl := c.a
	if sl.xattr != nil {
		return c.readXattr(&m)
	}
	switch {
	case !sl.opened || sl.flags.Mode() == p9.WriteOnly:
		return syscall.EBADF
	case sl.isDir() && c.s.dialect != dialectL:
		return c.oldReaddir(&m)
	case sl.isDir():
		return syscall.EISDIR
	case m.Offset > math.MaxInt64:
		return syscall.EINVAL
	}
	want := c.payloadLimit(m.Count)
	if want >= spliceMin && c.readPipe(sl, want, int64(m.Offset)) {
		return nil
	}
	c.reserve(wire.ReadOverhead + want)
	start := len(c.out) + wire.ReadOverhead
	n, err := c.readFull(sl, c.out[start:start+want], int64(m.Offset))
	if n == 0 && err != nil {
		return err
	}
	c.out = wire.AppendReadHeader(c.out, wire.TypeRread, c.tag, n)
	c.out = c.out[:start+n]
	return nil
}

// readFull reads until p is full or the file ends: clients take a short answer
// for the end.
func (c *call) readFull(sl *slot, p []byte, off int64) (int, error) {
	if sl.rlockIO() {
		defer sl.runlock()
	}
	f, ctx := c.bind(sl.file), c.ctx
	cr, waits := sl.file.(ContextReader)
	waits = waits && ctx != nil
	n := 0
	for n < len(p) {
		var k int
		var err error
		if waits {
			k, err = cr.ReadAtContext(ctx, p[n:], off+int64(n))
		} else {
			k, err = f.ReadAt(p[n:], off+int64(n))
		}
		if k < 0 || k > len(p)-n {
			return 0, syscall.EIO
		}
		n += k
		if errors.Is(err, io.EOF) {
			break
		}
		if errors.Is(err, ErrWouldBlock) {
			// Reading is harmless: all of it again, where it may wait.
			return 0, err
		}
		if err != nil {
			return n, err
		}
		if k == 0 || off+int64(n) < 0 || sl.streams() {
			break
		}
	}
	return n, nil
}

// streams says that a short read is what there is now.
func (sl *fidState) streams() bool {
	if sl.place != nil && sl.place.blocks {
		return true
	}
	s, ok := sl.file.(StreamReader)
	return ok && s.StreamReads()
}

func (c *call) write() error {
	var m wire.Twrite
	if err := m.Decode(c.body); err != nil {
		return err
	}
	sl := c.a
	if sl.xattr != nil {
		return c.writeXattr(&m)
	}
	switch {
	case !sl.opened || sl.flags.Mode() == p9.ReadOnly:
		return syscall.EBADF
	case m.Offset > math.MaxInt64 || m.Offset+uint64(len(m.Data)) > math.MaxInt64:
		return syscall.EFBIG
	}
	n, err := c.writeFile(sl, m.Data, int64(m.Offset))
	if n <= 0 && err != nil {
		return err
	}
	c.out = (&wire.Rwrite{Count: uint32(n)}).Append(c.out, c.tag)
	return nil
}

func (c *call) writeFile(sl *slot, p []byte, off int64) (int, error) {
	if sl.rlockIO() {
		defer sl.runlock()
	}
	var n int
	var err error
	if cw, ok := sl.file.(ContextWriter); ok && c.ctx != nil {
		n, err = cw.WriteAtContext(c.ctx, p, off)
	} else {
		n, err = c.bind(sl.file).WriteAt(p, off)
	}
	if n < 0 || n > len(p) {
		return 0, syscall.EIO
	}
	return n, err
}

func (c *call) fsync() error {
	var m wire.Tfsync
	if err := m.Decode(c.body); err != nil {
		return err
	}
	sl := c.a
	if !sl.opened {
		return syscall.EBADF
	}
	if err := c.syncFile(sl, m.Datasync != 0); err != nil {
		return err
	}
	c.out = (&wire.Rfsync{}).Append(c.out, c.tag)
	return nil
}

func (c *call) syncFile(sl *slot, data bool) error {
	if fs, ok := sl.file.(FSyncer); ok {
		return fs.FSyncContext(c.ctx, data)
	}
	if sl.rlockIO() {
		defer sl.runlock()
	}
	return c.bind(sl.file).FSync()
}
