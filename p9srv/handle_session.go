package p9srv

import (
	"syscall"

	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// leastMsize is the smallest msize that leaves room for every fixed answer.
const leastMsize = 512

// version is Tversion: it ends whatever the session was and starts it anew.
func (s *session) version(tag wire.Tag, body []byte) error {
	var m wire.Tversion
	if err := m.Decode(body); err != nil {
		s.refuse(tag, err)
		return nil
	}
	s.quiesce()
	s.clunkAll()
	s.q.drop()
	s.out = s.out[:0]
	s.dialect = dialectL
	if m.Msize < leastMsize {
		s.refuse(tag, syscall.EINVAL)
		return nil
	}
	r := wire.Rversion{Msize: min(m.Msize, uint32(s.srv.opts.MaxMessageSize))}
	var ok bool
	if s.dialect, r.Version, ok = dialectOf(m.Version); ok {
		s.msize = r.Msize
	} else {
		s.msize = 0
	}
	s.out = r.Append(s.out, tag)
	return nil
}

func (c *call) attach() error {
	var m wire.Tattach
	if err := m.Decode(c.body); err != nil {
		return err
	}
	if c.a.live {
		return syscall.EBUSY
	}
	if m.AFID != wire.NoFID {
		return syscall.EBADF
	}
	u, err := c.s.who(m.UID, m.Uname)
	if err != nil {
		return err
	}
	var f p9.File
	var names []string
	tree := ""
	if as, ok := c.s.srv.attacher.(AttacherAs); ok {
		f, err = as.AttachAs(c.ctx, *u, m.Aname)
		tree = m.Aname
	} else {
		names = attachNames(m.Aname)
		f, err = c.s.srv.attacher.Attach()
	}
	if err != nil {
		return err
	}
	qid, _, attr, err := c.bind(f).GetAttr(p9.AttrMaskAll)
	if err != nil {
		return closeWith(err, f, nil)
	}
	qid.Type = typeOf(qid, attr)
	root := fidState{user: u, live: true, file: f, qid: qid}
	if _, ok := f.(Concurrent); !ok {
		root.place = c.s.srv.trees.attach(tree, f)
		root.top = root.place.node
	}
	if len(names) > 0 {
		w := walker{c: c, from: &root}
		w.run(names)
		if err := w.missed(names); err != nil {
			return closeWith(err, root.file, root.place)
		}
		_ = closeFile(c.ctx, root.file, root.place)
		root.file, root.place, root.qid = w.file, w.place, w.qid
		if root.place != nil {
			root.top = root.place.node
		} else {
			root.above = &w.qid
		}
	}
	c.a.set(root.file, root.place, &root, root.qid)
	c.s.srv.count.fids.Add(1)
	c.out = (&wire.Rattach{QID: root.qid}).Append(c.out, c.tag)
	return nil
}

// closeWith closes a file that is of no use because of err.
func closeWith(err error, f p9.File, pl *place) error {
	switch {
	case pl != nil:
		_ = pl.release(nil)
	case f != nil:
		_ = f.Close()
	}
	return err
}

// typeOf is the QID type of a file; a tree that keeps QIDs without types has
// modes.
func typeOf(q p9.QID, a p9.Attr) p9.QIDType {
	if q.Type == 0 && a.Mode != 0 {
		return wire.QIDOf(a.Mode)
	}
	return q.Type
}

// clunk gives up a fid. What it has to write is written first.
func (c *call) clunk() error {
	var m wire.Tclunk
	if err := m.Decode(c.body); err != nil {
		return err
	}
	var err error
	switch {
	case c.a.xattr != nil:
		err = c.storeXattr()
	case c.a.old.rclose:
		err = c.removeFid()
	}
	if cerr := c.clear(c.a); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	c.out = (&wire.Rclunk{}).Append(c.out, c.tag)
	return nil
}

// clear closes what a slot holds, in the context of the call, whose end does
// not count: a clunk that was sent is not a session that was lost.
func (c *call) clear(sl *slot) error {
	c.s.srv.count.fids.Add(-1)
	return sl.clear(c.s.ctx)
}
