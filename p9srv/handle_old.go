package p9srv

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/p9srv/wire"
	"golang.org/x/sys/unix"
)

// This file is what 9P2000 and 9P2000.u have instead of messages of 9P2000.L.

// dialect is what a session speaks.
type dialect uint8

const (
	dialectL     dialect = iota // 9P2000.L
	dialectU                    // 9P2000.u
	dialectPlain                // 9P2000
)

// dialectOf says what is spoken with a client that asks for version. "9P2000.x"
// is a dialect of 9P2000 that we do not know, "9P2000.L.x" one of 9P2000.L: the
// manual (version(5)) lets us answer with the part before a period that we do.
func dialectOf(version string) (d dialect, answer string, ok bool) {
	for _, k := range [...]struct {
		name string
		d    dialect
	}{{wire.Version9P2000L, dialectL}, {wire.Version9P2000U, dialectU}, {wire.Version9P2000, dialectPlain}} {
		if version == k.name || strings.HasPrefix(version, k.name+".") {
			return k.d, k.name, true
		}
	}
	return dialectL, wire.VersionUnknown, false
}

// speaks says whether a request belongs to the dialect.
func (d dialect) speaks(t wire.Type) bool {
	switch t {
	case wire.TypeTopen, wire.TypeTcreate, wire.TypeTstat, wire.TypeTwstat:
		return d != dialectL
	}
	return d == dialectL || t >= wire.TypeTversion
}

// appendError puts the answer to what failed behind b.
func (d dialect) appendError(b []byte, tag wire.Tag, no syscall.Errno) []byte {
	if d == dialectL {
		return (&wire.Rlerror{Errno: uint32(no)}).Append(b, tag)
	}
	// Linux finds the errno by the C library's text where the number is not sent;
	// ours begins in lower case.
	text := no.Error()
	if text != "" {
		text = strings.ToUpper(text[:1]) + text[1:]
	}
	return (&wire.Rerror{Ename: text, Errno: uint32(no), Plain: d == dialectPlain}).Append(b, tag)
}

// oldState is what a fid needs in the old dialects.
type oldState struct {
	path   []string // the names it was walked to by
	rclose bool     // remove it when the fid goes
	pos    uint64   // bytes of a folder sent
	cookie uint64   // offset of the entry that comes next
}

// stepped is the path behind names.
func (o *oldState) stepped(names []string) []string {
	path := o.path[:len(o.path):len(o.path)]
	for _, n := range names {
		if n != ".." {
			path = append(path, n)
		} else if len(path) > 0 {
			path = path[: len(path)-1 : len(path)-1]
		}
	}
	return path
}

func (o *oldState) name() string {
	if len(o.path) == 0 {
		return "/"
	}
	return o.path[len(o.path)-1]
}

// openFlags are the flags of open(2) for an old mode.
func oldFlags(mode uint8) p9.OpenFlags {
	var fl p9.OpenFlags
	switch mode & 3 {
	case wire.OpenWrite:
		fl = p9.WriteOnly
	case wire.OpenRdWr:
		fl = p9.ReadWrite
	}
	if mode&wire.OpenTrunc != 0 {
		fl |= unix.O_TRUNC
	}
	if mode&wire.OpenAppend != 0 {
		fl |= unix.O_APPEND
	}
	return fl
}

func (c *call) oldOpen() error {
	var m wire.Topen
	if err := m.Decode(c.body); err != nil {
		return err
	}
	sl := c.a
	flags := oldFlags(m.Mode)
	switch {
	case sl.opened:
		return syscall.EBUSY
	case sl.qid.Type&p9.TypeSymlink != 0:
		return syscall.ELOOP
	case sl.isDir() && (flags != p9.ReadOnly || m.Mode&wire.OpenRClose != 0):
		return syscall.EISDIR
	}
	q, iounit, err := c.openFile(sl, flags)
	if err != nil {
		return err
	}
	sl.opened, sl.flags = true, flags
	sl.old.rclose = m.Mode&wire.OpenRClose != 0
	c.out = (&wire.Ropen{QID: q, IOUnit: iounit}).Append(c.out, c.tag)
	return nil
}

func (c *call) oldCreate() error {
	var m wire.Tcreate
	if err := m.Decode(c.body); err != nil {
		return err
	}
	if err := c.creatable(m.Name); err != nil {
		return err
	}
	var q p9.QID
	var iounit uint32
	var err error
	const special = wire.DMDir | wire.DMSymlink | wire.DMLink | wire.DMDevice | wire.DMNamedPipe | wire.DMSocket
	if m.Perm&special == 0 {
		q, iounit, err = c.oldCreateFile(&m)
	} else {
		q, err = c.oldCreateSpecial(&m)
	}
	if err != nil {
		return err
	}
	c.out = (&wire.Rcreate{QID: q, IOUnit: iounit}).Append(c.out, c.tag)
	return nil
}

// oldPermissions are the twelve bits of a mode.
func oldPermissions(mode uint32) p9.FileMode {
	p := p9.FileMode(mode & 0o777)
	for _, b := range [...]struct{ dm, bit uint32 }{
		{wire.DMSetUID, unix.S_ISUID}, {wire.DMSetGID, unix.S_ISGID}, {wire.DMSetVTX, unix.S_ISVTX},
	} {
		if mode&b.dm != 0 {
			p |= p9.FileMode(b.bit)
		}
	}
	return p
}

func (c *call) oldCreateFile(m *wire.Tcreate) (p9.QID, uint32, error) {
	sl := c.a
	flags := oldFlags(m.Mode) | unix.O_CREAT | unix.O_EXCL
	l := wire.Tlcreate{Name: m.Name, Flags: flags, Mode: oldPermissions(m.Perm), GID: p9.NoGID}
	f, pl, q, iounit, err := c.createFile(&l)
	if err != nil {
		return p9.QID{}, 0, err
	}
	path := sl.old.stepped([]string{m.Name})
	c.become(f, pl, q)
	sl.opened, sl.flags = true, flags
	sl.old = oldState{path: path, rclose: m.Mode&wire.OpenRClose != 0}
	return q, iounit, nil
}

// oldCreateSpecial makes what is not a regular file, and moves the fid there. A
// folder is opened, too.
func (c *call) oldCreateSpecial(m *wire.Tcreate) (p9.QID, error) {
	sl := c.a
	switch {
	case m.Perm&wire.DMDir == 0 && m.Plain:
		return p9.QID{}, syscall.EINVAL
	case m.Perm&wire.DMDir != 0 && oldFlags(m.Mode) != p9.ReadOnly:
		return p9.QID{}, syscall.EISDIR
	}
	err := c.inFolder(m.Name, func(dir p9.File) error { return c.oldMake(m, dir) })
	if err != nil {
		return p9.QID{}, err
	}
	w := walker{c: c, from: &sl.fidState}
	w.run([]string{m.Name})
	if err := w.missed([]string{m.Name}); err != nil {
		return p9.QID{}, fmt.Errorf("%q was made, and cannot be walked to: %w", m.Name, again(err))
	}
	path := sl.old.stepped([]string{m.Name})
	c.become(w.file, w.place, w.qid)
	sl.old = oldState{path: path}
	if m.Perm&wire.DMDir == 0 {
		return w.qid, nil
	}
	if _, _, err := c.openFile(sl, p9.ReadOnly); err != nil {
		return p9.QID{}, again(err)
	}
	sl.opened, sl.flags = true, p9.ReadOnly
	return w.qid, nil
}

// again keeps what was half done from being done anew.
func again(err error) error {
	if errors.Is(err, ErrWouldBlock) {
		return syscall.EAGAIN
	}
	return err
}

func (c *call) oldMake(m *wire.Tcreate, dir p9.File) error {
	perm, uid := oldPermissions(m.Perm), c.uid()
	node := func(typ uint32, major, minor uint32) error {
		if err := c.s.srv.opts.mayHave(perm | p9.FileMode(typ)); err != nil {
			return err
		}
		_, err := dir.Mknod(m.Name, perm|p9.FileMode(typ), major, minor, uid, p9.NoGID)
		return err
	}
	switch {
	case m.Perm&wire.DMDir != 0:
		_, err := dir.Mkdir(m.Name, perm, uid, p9.NoGID)
		return err
	case m.Perm&wire.DMSymlink != 0:
		_, err := dir.Symlink(m.Extension, m.Name, uid, p9.NoGID)
		return err
	case m.Perm&wire.DMLink != 0:
		if err := c.linkable(); err != nil {
			return err
		}
		return dir.Link(c.b.file, m.Name)
	case m.Perm&wire.DMNamedPipe != 0:
		return node(unix.S_IFIFO, 0, 0)
	case m.Perm&wire.DMSocket != 0:
		return node(unix.S_IFSOCK, 0, 0)
	}
	var kind string
	var major, minor uint32
	if n, err := fmt.Sscanf(m.Extension, "%1s %d %d", &kind, &major, &minor); n != 3 || err != nil {
		return syscall.EINVAL
	}
	switch kind {
	case "b":
		return node(unix.S_IFBLK, major, minor)
	case "c":
		return node(unix.S_IFCHR, major, minor)
	}
	return syscall.EINVAL
}

// linkFID is the fid of what a Tcreate gives another name to.
func linkFID(body []byte) (wire.FID, bool) {
	var m wire.Tcreate
	if m.Decode(body) != nil || m.Perm&wire.DMLink == 0 {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSpace(m.Extension), 10, 32)
	return wire.FID(n), err == nil
}
