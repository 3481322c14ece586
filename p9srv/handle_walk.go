package p9srv

import (
	"errors"
	"strings"
	"syscall"

	"github.com/hugelgupf/p9/linux"
	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

func (c *call) walk() error {
	var m wire.Twalk
	w := walker{c: c, from: c.a}
	if c.ctx == nil {
		m.Names, w.qids = c.s.scratch.names[:0], c.s.scratch.qids[:0]
	}
	if err := m.Decode(c.body); err != nil {
		return err
	}
	from, to := c.a, c.b
	switch {
	case from.xattr != nil:
		return syscall.EBADF
	case from == to && from.opened, from != to && to.live:
		return syscall.EBUSY
	}
	w.run(m.Names)
	if w.file == nil {
		if len(w.qids) == 0 {
			return w.missed(m.Names)
		}
		c.out = (&wire.Rwalk{QIDs: w.qids}).Append(c.out, c.tag)
		return nil
	}
	if from == to {
		user := *from
		_ = closeFile(c.s.ctx, from.file, from.place)
		to.set(w.file, w.place, &user, w.qtype)
	} else {
		to.set(w.file, w.place, from, w.qtype)
		c.s.srv.count.fids.Add(1)
	}
	c.out = (&wire.Rwalk{QIDs: w.qids}).Append(c.out, c.tag)
	return nil
}

// walker goes from a file along names. When it got through all of them, file is
// not nil and is the caller's.
type walker struct {
	c     *call
	from  *slot
	qids  []p9.QID
	file  p9.File
	place *place
	qtype p9.QIDType
	err   error
}

// missed is why a walk ended early, nil when it did not.
func (w *walker) missed(names []string) error {
	switch {
	case w.file != nil:
		return nil
	case w.err != nil:
		return w.err
	}
	return syscall.ENOENT
}

// checkNames is how many of names are fit to be walked, and what is wrong with
// the next one.
func checkNames(names []string) (int, error) {
	for i, n := range names {
		switch {
		case n == "" || n == ".":
			return i, syscall.EINVAL
		case len(n) > wire.MaxName:
			return i, syscall.ENAMETOOLONG
		case strings.IndexByte(n, '/') >= 0 || strings.IndexByte(n, 0) >= 0:
			return i, syscall.EINVAL
		}
	}
	return len(names), nil
}

func (w *walker) run(names []string) {
	n, bad := checkNames(names)
	w.qtype = w.from.qtype
	if len(names) > 0 && !w.from.isDir() {
		w.err = syscall.ENOTDIR
		return
	}
	if w.from.place != nil {
		w.places(names[:n])
	} else {
		w.names(names[:n])
	}
	if bad != nil && w.file != nil {
		w.drop()
		w.err = bad
	}
}

// drop gives back the file that was reached.
func (w *walker) drop() {
	_ = closeWith(nil, w.file, w.place)
	w.file, w.place = nil, nil
}

// names walks Concurrent Files.
func (w *walker) names(names []string) {
	f := w.c.file(w.from)
	if wk, ok := f.(Walker); ok {
		w.qids, w.file, w.err = wk.WalkNames(w.qids, names)
		if w.err == nil && (w.file == nil || len(w.qids) != len(names)) {
			w.err = syscall.ENOENT
		}
		if w.err != nil {
			if w.file != nil {
				w.drop()
			}
			return
		}
		if len(w.qids) > 0 {
			w.qtype = w.qids[len(w.qids)-1].Type
		}
		return
	}
	if len(names) == 0 {
		_, w.file, w.err = f.Walk(nil)
		return
	}
	for i, name := range names {
		q, next, _, attr, err := walkOne(f, name)
		if i > 0 {
			_ = f.Close()
		}
		if err != nil {
			w.err = err
			return
		}
		w.qids, w.qtype = append(w.qids, q), typeOf(q, attr)
		if i == len(names)-1 {
			w.file = next
			return
		}
		if w.qtype&p9.TypeDir == 0 {
			_ = next.Close()
			w.err = syscall.ENOTDIR
			return
		}
		f = next
	}
}

// walkOne walks a name and finds out what is there.
func walkOne(f p9.File, name string) (q p9.QID, next p9.File, valid p9.AttrMask, attr p9.Attr, err error) {
	names := []string{name}
	qids, next, valid, attr, err := f.WalkGetAttr(names)
	if errors.Is(err, linux.ENOSYS) || errors.Is(err, syscall.ENOSYS) {
		qids, next, err = f.Walk(names)
		if err == nil {
			_, valid, attr, err = next.GetAttr(p9.AttrMaskAll)
			if err != nil {
				_ = next.Close()
			}
		}
	}
	if err == nil && len(qids) != 1 {
		_ = next.Close()
		err = syscall.EIO
	}
	if err != nil {
		return p9.QID{}, nil, valid, attr, err
	}
	return qids[0], next, valid, attr, nil
}

// places walks Files that are not Concurrent, one locked step at a time.
func (w *walker) places(names []string) {
	at := w.from.place
	if len(names) == 0 {
		w.clone(at)
		return
	}
	var held *place // at, when it is ours
	for i, name := range names {
		last := i == len(names)-1
		next, q, t, err := w.step(at, name)
		if held != nil {
			_ = held.release(nil)
		}
		if err != nil {
			w.err = err
			return
		}
		w.qids, w.qtype = append(w.qids, q), t
		if last {
			w.file, w.place = next.file, next
			return
		}
		if t&p9.TypeDir == 0 {
			_ = next.release(nil)
			w.err = syscall.ENOTDIR
			return
		}
		at, held = next, next
	}
}

// step walks one name from a place.
func (w *walker) step(at *place, name string) (*place, p9.QID, p9.QIDType, error) {
	at.rlock()
	defer at.runlock()
	if at.gone() {
		return nil, p9.QID{}, 0, syscall.ENOENT
	}
	if name == ".." {
		up := at
		if at.node != w.from.top && at.parent != nil {
			up = at.parent
		}
		_, f, err := up.file.Walk(nil)
		if err != nil {
			return nil, p9.QID{}, 0, err
		}
		q, _, attr, err := f.GetAttr(p9.AttrMaskAll)
		if err != nil {
			return nil, p9.QID{}, 0, closeWith(err, f, nil)
		}
		return up.clone(f), q, typeOf(q, attr), nil
	}
	q, f, _, attr, err := walkOne(at.file, name)
	if err != nil {
		return nil, p9.QID{}, 0, err
	}
	pl := at.child(name, f)
	pl.blocks = waits(attr.Mode)
	return pl, q, typeOf(q, attr), nil
}

// waits says that I/O on a file of this type may wait for somebody else.
func waits(m p9.FileMode) bool {
	return m.IsNamedPipe() || m.IsCharacterDevice() || m.IsSocket()
}

func (w *walker) clone(at *place) {
	at.rlock()
	defer at.runlock()
	_, f, err := at.file.Walk(nil)
	if err != nil {
		w.err = err
		return
	}
	w.file, w.place = f, at.clone(f)
}
