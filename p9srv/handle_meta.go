package p9srv

import (
	"syscall"

	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

func (c *call) getattr() error {
	var m wire.Tgetattr
	if err := m.Decode(c.body); err != nil {
		return err
	}
	var r wire.Rgetattr
	var err error
	if r.QID, r.Valid, r.Attr, err = c.attr(c.a, m.Mask); err != nil {
		return err
	}
	c.out = r.Append(c.out, c.tag)
	return nil
}

func (c *call) attr(sl *slot, mask p9.AttrMask) (p9.QID, p9.AttrMask, p9.Attr, error) {
	sl.rlock()
	defer sl.runlock()
	return c.bind(sl.file).GetAttr(mask)
}

func (c *call) setattr() error {
	var m wire.Tsetattr
	if err := m.Decode(c.body); err != nil {
		return err
	}
	m.Attr.Permissions &= permissions
	if err := c.setAttr(c.a, m.Valid, m.Attr); err != nil {
		return err
	}
	c.out = (&wire.Rsetattr{}).Append(c.out, c.tag)
	return nil
}

func (c *call) setAttr(sl *slot, valid p9.SetAttrMask, attr p9.SetAttr) error {
	if valid.Permissions && !sl.isDir() {
		if err := c.s.srv.opts.mayHave(attr.Permissions & permissions); err != nil {
			return err
		}
	}
	sl.lock()
	defer sl.unlock()
	if sl.gone() && !sl.opened {
		return syscall.ENOENT
	}
	if sa, ok := sl.file.(SetAttrer); ok && c.ctx != nil {
		return sa.SetAttrContext(c.ctx, valid, attr)
	}
	return c.bind(sl.file).SetAttr(valid, attr)
}

func (c *call) readlink() error {
	var m wire.Treadlink
	if err := m.Decode(c.body); err != nil {
		return err
	}
	if c.a.qid.Type&p9.TypeSymlink == 0 {
		return syscall.EINVAL
	}
	c.a.rlock()
	defer c.a.runlock()
	if c.a.gone() {
		return syscall.ENOENT
	}
	target, err := c.bind(c.a.file).Readlink()
	if err != nil {
		return err
	}
	if wire.CheckString(target) != nil {
		return syscall.ENAMETOOLONG
	}
	c.out = (&wire.Rreadlink{Target: target}).Append(c.out, c.tag)
	return nil
}

func (c *call) statfs() error {
	var m wire.Tstatfs
	if err := m.Decode(c.body); err != nil {
		return err
	}
	st, err := c.bind(c.a.file).StatFS()
	if err != nil {
		return err
	}
	c.out = (&wire.Rstatfs{Stat: st}).Append(c.out, c.tag)
	return nil
}
