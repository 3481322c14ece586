package p9srv

import (
	"errors"
	"slices"
	"strings"
	"syscall"

	"github.com/hugelgupf/p9/linux"
	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

func (c *call) walk() error {
	var m wire.Twalk
	w := walker{c: c, from: &c.a.fidState}
	if c.ctx == nil {
		m.Names, w.qids = c.s.scratch.names[:0], c.s.scratch.qids[:0]
	}
	if err := m.Decode(c.body); err != nil {
		return err
	}
	from, to := c.a, c.b
	path := from.old.path
	if c.s.dialect != dialectL {
		path = from.old.stepped(m.Names)
	}
	switch {
	case from == to && from.opened, from != to && to.live:
		return syscall.EBUSY
	}
	w.run(m.Names)
	if w.file == nil {
		if len(w.qids) == 0 || c.ctx == nil && errors.Is(w.err, ErrWouldBlock) {
			return w.missed(m.Names)
		}
		c.out = (&wire.Rwalk{QIDs: w.qids}).Append(c.out, c.tag)
		return nil
	}
	if from == to {
		old := from.fidState
		_ = closeFile(c.s.ctx, old.file, old.place)
		to.set(w.file, w.place, &old, w.qid)
	} else {
		to.set(w.file, w.place, &from.fidState, w.qid)
		c.s.srv.count.fids.Add(1)
	}
	to.old.path = path
	c.out = (&wire.Rwalk{QIDs: w.qids}).Append(c.out, c.tag)
	return nil
}

// walker goes from a file along names. When it got through all of them, file is
// not nil and is the caller's.
type walker struct {
	c     *call
	from  *fidState
	qids  []p9.QID
	file  p9.File
	place *place
	qid   p9.QID // of where it is
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
	w.qid = w.from.qid
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
	f := w.c.bind(w.from.file)
	wk, ok := f.(Walker)
	switch {
	case w.from.above != nil && slices.Contains(names, ".."):
		w.oneByOne(w.from.file, names)
	case ok:
		w.qids, w.file, w.err = wk.WalkNames(w.qids, names)
		if w.err == nil && (w.file == nil || len(w.qids) != len(names)) {
			w.err = syscall.ENOENT
		}
		if w.err != nil && w.file != nil {
			w.drop()
		}
		if len(w.qids) > 0 {
			w.qid = w.qids[len(w.qids)-1]
		}
	case len(names) == 0:
		_, w.file, w.err = f.Walk(nil)
	default:
		w.oneByOne(w.from.file, names)
	}
}

// oneByOne walks names from f, which stays open.
func (w *walker) oneByOne(f p9.File, names []string) {
	for i, name := range names {
		var q p9.QID
		var next p9.File
		if name == ".." && w.from.above != nil && w.qid.Path == w.from.above.Path {
			q = w.qid
			_, next, w.err = w.c.bind(f).Walk(nil)
		} else {
			q, next, w.err = w.c.walkOne(f, name)
		}
		if i > 0 {
			_ = f.Close()
		}
		if w.err != nil {
			return
		}
		w.qids, w.qid = append(w.qids, q), q
		switch {
		case i == len(names)-1:
			w.file = next
		case q.Type&p9.TypeDir == 0:
			_ = next.Close()
			w.err = syscall.ENOTDIR
			return
		}
		f = next
	}
}

// walkOne walks a name and finds out what is there: its QID has a type.
func (c *call) walkOne(f p9.File, name string) (q p9.QID, next p9.File, err error) {
	q, next, _, err = c.walkMode(f, name)
	return q, next, err
}

// walkMode is walkOne with the mode.
func (c *call) walkMode(f p9.File, name string) (p9.QID, p9.File, p9.FileMode, error) {
	f = c.bind(f)
	names := []string{name}
	qids, next, _, attr, err := f.WalkGetAttr(names)
	if errors.Is(err, linux.ENOSYS) || errors.Is(err, syscall.ENOSYS) {
		qids, next, err = f.Walk(names)
		if err == nil {
			_, _, attr, err = c.bind(next).GetAttr(p9.AttrMaskAll)
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
		return p9.QID{}, nil, 0, err
	}
	qids[0].Type = typeOf(qids[0], attr)
	return qids[0], next, attr.Mode, nil
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
		next, q, err := w.step(at, name)
		if held != nil {
			_ = held.release(nil)
		}
		if err != nil {
			w.err = err
			return
		}
		w.qids, w.qid = append(w.qids, q), q
		if last {
			w.file, w.place = next.file, next
			return
		}
		if q.Type&p9.TypeDir == 0 {
			_ = next.release(nil)
			w.err = syscall.ENOTDIR
			return
		}
		at, held = next, next
	}
}

// step walks one name from a place.
func (w *walker) step(at *place, name string) (*place, p9.QID, error) {
	at.rlock()
	defer at.runlock()
	if at.gone() {
		return nil, p9.QID{}, syscall.ENOENT
	}
	if name == ".." {
		up := at
		if at.node != w.from.top && at.parent != nil {
			up = at.parent
		}
		_, f, err := w.c.bind(up.file).Walk(nil)
		if err != nil {
			return nil, p9.QID{}, err
		}
		q, _, attr, err := w.c.bind(f).GetAttr(p9.AttrMaskAll)
		if err != nil {
			return nil, p9.QID{}, closeWith(err, f, nil)
		}
		q.Type = typeOf(q, attr)
		return up.clone(f), q, nil
	}
	q, f, mode, err := w.c.walkMode(at.file, name)
	if err != nil {
		return nil, p9.QID{}, err
	}
	pl := at.child(name, f)
	pl.blocks = waits(mode)
	return pl, q, nil
}

// waits says that I/O on a file of this type may wait for somebody else.
func waits(m p9.FileMode) bool {
	return m.IsNamedPipe() || m.IsCharacterDevice() || m.IsSocket()
}

func (w *walker) clone(at *place) {
	at.rlock()
	defer at.runlock()
	_, f, err := w.c.bind(at.file).Walk(nil)
	if err != nil {
		w.err = err
		return
	}
	w.file, w.place = f, at.clone(f)
}
