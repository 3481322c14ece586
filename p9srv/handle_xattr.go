package p9srv

import (
	"strings"
	"sync"
	"syscall"

	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/p9srv/wire"
	"golang.org/x/sys/unix"
)

// maxXattr is the largest value of an extended attribute (XATTR_SIZE_MAX).
const maxXattr = 64 << 10

// xattr makes a fid a value: one that was read (walked to), or one that is
// being written and is set by the clunk.
type xattr struct {
	write bool
	name  string
	flags p9.XattrFlags
	size  int // what will be written

	mu  sync.Mutex
	buf []byte
}

func (c *call) xattrwalk() error {
	var m wire.Txattrwalk
	if err := m.Decode(c.body); err != nil {
		return err
	}
	switch {
	case c.a == c.b || c.b.live:
		return syscall.EBUSY
	case strings.IndexByte(m.Name, 0) >= 0:
		return syscall.EINVAL
	}
	v, err := c.xattrValue(m.Name)
	if err != nil {
		return err
	}
	c.b.set(nil, nil, &fidState{user: c.a.user}, p9.QID{})
	c.b.xattr = &xattr{buf: v}
	c.s.srv.count.fids.Add(1)
	c.out = (&wire.Rxattrwalk{Size: uint64(len(v))}).Append(c.out, c.tag)
	return nil
}

func (c *call) xattrValue(name string) ([]byte, error) {
	c.a.rlock()
	defer c.a.runlock()
	f := c.bind(c.a.file)
	if name != "" {
		return f.GetXattr(name)
	}
	names, err := f.ListXattrs()
	if err != nil || len(names) == 0 {
		return nil, err
	}
	return []byte(strings.Join(names, "\x00") + "\x00"), nil
}

func (c *call) xattrcreate() error {
	var m wire.Txattrcreate
	if err := m.Decode(c.body); err != nil {
		return err
	}
	switch {
	case c.a.opened:
		return syscall.EBUSY
	case m.Name == "" || strings.IndexByte(m.Name, 0) >= 0:
		return syscall.EINVAL
	case len(m.Name) > wire.MaxName:
		return syscall.ERANGE
	case m.Size > maxXattr:
		return syscall.E2BIG
	case m.Flags&^(unix.XATTR_CREATE|unix.XATTR_REPLACE) != 0:
		return syscall.EINVAL
	case m.Name == capabilityXattr && m.Size > 0 && c.s.srv.opts.NoSetID:
		return syscall.EPERM
	}
	c.a.xattr = &xattr{write: true, name: m.Name, size: int(m.Size), flags: p9.XattrFlags(m.Flags)}
	c.out = (&wire.Rxattrcreate{}).Append(c.out, c.tag)
	return nil
}

func (c *call) readXattr(m *wire.Tread) error {
	x := c.a.xattr
	if x.write {
		return syscall.EBADF
	}
	var part []byte
	if m.Offset < uint64(len(x.buf)) {
		part = x.buf[m.Offset:]
		part = part[:min(len(part), c.payloadLimit(m.Count))]
	}
	c.out = (&wire.Rread{Data: part}).Append(c.out, c.tag)
	return nil
}

func (c *call) writeXattr(m *wire.Twrite) error {
	x := c.a.xattr
	if !x.write {
		return syscall.EBADF
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case m.Offset != uint64(len(x.buf)):
		return syscall.EINVAL
	case len(x.buf)+len(m.Data) > x.size:
		return syscall.ENOSPC
	}
	x.buf = append(x.buf, m.Data...)
	c.out = (&wire.Rwrite{Count: uint32(len(m.Data))}).Append(c.out, c.tag)
	return nil
}

// storeXattr sets what was written, when the fid is clunked. An empty value
// with XATTR_REPLACE is how Linux says removexattr(2).
func (c *call) storeXattr() error {
	x := c.a.xattr
	switch {
	case !x.write:
		return nil
	case len(x.buf) != x.size:
		return syscall.EINVAL
	}
	c.a.lock()
	defer c.a.unlock()
	if c.a.gone() {
		return syscall.ENOENT
	}
	f := c.bind(c.a.file)
	if x.size == 0 && x.flags == p9.XattrReplace {
		return f.RemoveXattr(x.name)
	}
	return f.SetXattr(x.name, x.buf, x.flags)
}
