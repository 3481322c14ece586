package p9srv

import (
	"syscall"

	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

func (c *call) lock() error {
	var m wire.Tlock
	if err := m.Decode(c.body); err != nil {
		return err
	}
	switch {
	case !c.a.opened:
		return syscall.EBADF
	case m.Type > p9.Unlock:
		return syscall.EINVAL
	}
	l := Lock{
		Type: m.Type, Flags: m.Flags, Start: m.Start, Length: m.Length,
		PID: m.PID, Client: m.Client, Conn: c.s.num,
	}
	var st p9.LockStatus
	var err error
	if cl, ok := c.a.file.(ContextLocker); ok {
		st, err = cl.LockContext(c.ctx, l)
	} else {
		st, err = c.bind(c.a.file).Lock(int(l.PID), l.Type, l.Flags, l.Start, l.Length, l.Client)
	}
	if err != nil {
		return err
	}
	c.out = (&wire.Rlock{Status: st}).Append(c.out, c.tag)
	return nil
}

func (c *call) getlock() error {
	var m wire.Tgetlock
	if err := m.Decode(c.body); err != nil {
		return err
	}
	lt, ok := c.a.file.(LockTester)
	switch {
	case !ok:
		return syscall.EOPNOTSUPP
	case !c.a.opened:
		return syscall.EBADF
	case m.Type > p9.Unlock:
		return syscall.EINVAL
	}
	l, err := lt.GetLock(c.ctx, Lock{
		Type: m.Type, Start: m.Start, Length: m.Length, PID: m.PID, Client: m.Client, Conn: c.s.num,
	})
	if err != nil {
		return err
	}
	c.out = (&wire.Rgetlock{
		Type: l.Type, Start: l.Start, Length: l.Length, PID: l.PID, Client: l.Client,
	}).Append(c.out, c.tag)
	return nil
}
