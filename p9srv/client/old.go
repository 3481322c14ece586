package client

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/p9srv/wire"
)

// This file is 9P2000.u and 9P2000, in the terms of 9P2000.L. What they have no
// message for is EOPNOTSUPP.

// old says whether the dialect is one of the two.
func (c *Conn) old() bool { return c.version != wire.Version9P2000L }

// plain says whether the dialect is 9P2000, without Unix's numbers.
func (c *Conn) plain() bool { return c.version == wire.Version9P2000 }

// cannot is what the dialect has no message for.
func (c *Conn) cannot(op, name string) error {
	return &Error{Op: op, Name: name, Errno: syscall.EOPNOTSUPP}
}

// oldReason is the errno of an Rerror. 9P2000 has only a text, which is Linux's
// for most servers on Linux; the rest is EIO with the server's words.
func oldReason(m *wire.Rerror) (syscall.Errno, string) {
	if !m.Plain && m.Errno != 0 && m.Errno <= maxErrno {
		return syscall.Errno(m.Errno), ""
	}
	const last = 133 // the highest errno that Linux has a text for
	for e := syscall.Errno(1); e <= last; e++ {
		if strings.EqualFold(e.Error(), m.Ename) {
			return e, ""
		}
	}
	return syscall.EIO, m.Ename
}

// oldMode is open(2)'s flags as Topen has them.
func (c *Conn) oldMode(op, name string, flags p9.OpenFlags) (uint8, error) {
	mode := uint8(wire.OpenRead)
	switch flags & unix.O_ACCMODE {
	case unix.O_WRONLY:
		mode = wire.OpenWrite
	case unix.O_RDWR:
		mode = wire.OpenRdWr
	}
	if flags&unix.O_TRUNC != 0 {
		mode |= wire.OpenTrunc
	}
	if flags&unix.O_APPEND != 0 {
		if c.plain() {
			return 0, c.cannot(op, name) // there append-only is the file's own
		}
		mode |= wire.OpenAppend
	}
	return mode, nil
}

func (f *Fid) oldOpen(ctx context.Context, flags p9.OpenFlags) (p9.QID, error) {
	mode, err := f.c.oldMode("open", "", flags)
	if err != nil {
		return p9.QID{}, err
	}
	var answer wire.Ropen
	if err := f.do(ctx, &wire.Topen{FID: f.fid, Mode: mode}, &answer, ""); err != nil {
		return p9.QID{}, err
	}
	f.state.Store(&fidState{qid: answer.QID, iounit: answer.IOUnit})
	return answer.QID, nil
}

// oldPerm is a mode as Tcreate and Twstat have it, with the bits of the type.
func (c *Conn) oldPerm(mode p9.FileMode) uint32 {
	perm := uint32(mode) & 0o777
	if mode.IsDir() {
		perm |= wire.DMDir
	}
	if c.plain() {
		return perm
	}
	for _, b := range dmBits {
		if uint32(mode)&b.bit != 0 {
			perm |= b.dm
		}
	}
	return perm
}

// dmBits are the permissions that 9P2000 does not have.
var dmBits = [...]struct{ bit, dm uint32 }{
	{unix.S_ISUID, wire.DMSetUID}, {unix.S_ISGID, wire.DMSetGID}, {unix.S_ISVTX, wire.DMSetVTX},
}

func (f *Fid) oldCreate(ctx context.Context, name string, flags p9.OpenFlags, perm uint32, extension string) (p9.QID, error) {
	mode, err := f.c.oldMode("create", name, flags&^unix.O_TRUNC)
	if err != nil {
		return p9.QID{}, err
	}
	var answer wire.Rcreate
	req := wire.Tcreate{FID: f.fid, Name: name, Perm: perm, Mode: mode, Extension: extension, Plain: f.c.plain()}
	if err := f.do(ctx, &req, &answer, name); err != nil {
		return p9.QID{}, err
	}
	f.state.Store(&fidState{qid: answer.QID, iounit: answer.IOUnit})
	return answer.QID, nil
}

// oldMake makes what is not opened afterwards, with a copy of the folder's fid.
func (f *Fid) oldMake(ctx context.Context, name string, perm uint32, extension string) (p9.QID, error) {
	const unixOnly = wire.DMSymlink | wire.DMLink | wire.DMDevice | wire.DMNamedPipe | wire.DMSocket
	if f.c.plain() && perm&unixOnly != 0 {
		return p9.QID{}, f.c.cannot("create of that kind", name)
	}
	g, err := f.Clone(ctx)
	if err != nil {
		return p9.QID{}, err
	}
	q, err := g.oldCreate(ctx, name, p9.ReadOnly, perm, extension)
	g.Clunk(context.WithoutCancel(ctx)) // what counts is that it was made
	return q, err
}

func (f *Fid) oldMknod(ctx context.Context, n Node) (p9.QID, error) {
	perm, extension := f.c.oldPerm(n.Mode), ""
	switch n.Mode & p9.FileModeMask {
	case 0, unix.S_IFREG:
	case unix.S_IFIFO:
		perm |= wire.DMNamedPipe
	case unix.S_IFSOCK:
		perm |= wire.DMSocket
	case unix.S_IFBLK, unix.S_IFCHR:
		perm |= wire.DMDevice
		kind := "c"
		if n.Mode.IsBlockDevice() {
			kind = "b"
		}
		extension = fmt.Sprintf("%s %d %d", kind, n.Major, n.Minor)
	}
	return f.oldMake(ctx, n.Name, perm, extension)
}

// oldStat asks for a file's Stat.
func (f *Fid) oldStat(ctx context.Context) (wire.Stat, error) {
	var answer wire.Rstat
	err := f.do(ctx, &wire.Tstat{FID: f.fid}, &answer, "")
	return answer.Stat, err
}

// oldAttr is a Stat as attributes, as far as it says them.
func oldAttr(st *wire.Stat) (p9.AttrMask, p9.Attr) {
	valid := p9.AttrMask{Mode: true, Size: true, ATime: true, MTime: true, INo: true}
	a := p9.Attr{
		Mode: oldType(st) | p9.FileMode(st.Mode&0o777), Size: st.Length, BlockSize: 4096, Blocks: (st.Length + 511) / 512,
		ATimeSeconds: uint64(st.Atime), MTimeSeconds: uint64(st.Mtime),
	}
	for _, b := range dmBits {
		if st.Mode&b.dm != 0 {
			a.Mode |= p9.FileMode(b.bit)
		}
	}
	a.UID, valid.UID = p9.UID(st.NUID), !st.Plain
	a.GID, valid.GID = p9.GID(st.NGID), !st.Plain
	if st.Plain {
		// Some servers have numbers for names.
		if n, err := strconv.ParseUint(st.UID, 10, 32); err == nil {
			a.UID, valid.UID = p9.UID(n), true
		}
		if n, err := strconv.ParseUint(st.GID, 10, 32); err == nil {
			a.GID, valid.GID = p9.GID(n), true
		}
	}
	a.NLink = 1
	var kind string
	var major, minor uint32
	if n, ok := strings.CutPrefix(st.Extension, "HARDLINKCOUNT "); ok {
		if links, err := strconv.ParseUint(n, 10, 32); err == nil {
			a.NLink, valid.NLink = p9.NLink(links), true
		}
	} else if n, _ := fmt.Sscanf(st.Extension, "%1s %d %d", &kind, &major, &minor); n == 3 && st.Mode&wire.DMDevice != 0 {
		a.RDev, valid.RDev = p9.Dev(unix.Mkdev(major, minor)), true
	}
	return valid, a
}

// oldType is the type that a Stat says, as in a Unix mode.
func oldType(st *wire.Stat) p9.FileMode {
	switch {
	case st.Mode&wire.DMDir != 0:
		return unix.S_IFDIR
	case st.Mode&wire.DMSymlink != 0:
		return unix.S_IFLNK
	case st.Mode&wire.DMNamedPipe != 0:
		return unix.S_IFIFO
	case st.Mode&wire.DMSocket != 0:
		return unix.S_IFSOCK
	case st.Mode&wire.DMDevice != 0 && strings.HasPrefix(st.Extension, "b"):
		return unix.S_IFBLK
	case st.Mode&wire.DMDevice != 0:
		return unix.S_IFCHR
	}
	return unix.S_IFREG
}

// unchanged is a Stat that leaves all as it is.
func (c *Conn) unchanged() wire.Stat {
	const same = math.MaxUint32
	return wire.Stat{
		Type: math.MaxUint16, Dev: same, QID: p9.QID{Type: 0xff, Version: same, Path: math.MaxUint64},
		Mode: same, Atime: same, Mtime: same, Length: math.MaxUint64,
		NUID: p9.NoUID, NGID: p9.NoGID, NMUID: p9.NoUID, Plain: c.plain(),
	}
}

func (f *Fid) oldWstat(ctx context.Context, st wire.Stat) error {
	return f.do(ctx, &wire.Twstat{FID: f.fid, Stat: st}, &wire.Rwstat{}, st.Name)
}

func (f *Fid) oldSetAttr(ctx context.Context, valid p9.SetAttrMask, attr p9.SetAttr) error {
	st := f.c.unchanged()
	if valid.Permissions {
		mode := attr.Permissions
		if f.QID().Type&p9.TypeDir != 0 {
			mode |= p9.ModeDirectory
		}
		st.Mode = f.c.oldPerm(mode)
	}
	if valid.Size {
		st.Length = attr.Size
	}
	when := func(given bool, sec uint64) uint32 {
		if !given {
			sec = uint64(time.Now().Unix())
		}
		return uint32(sec)
	}
	if valid.ATime {
		st.Atime = when(valid.ATimeNotSystemTime, attr.ATimeSeconds)
	}
	if valid.MTime {
		st.Mtime = when(valid.MTimeNotSystemTime, attr.MTimeSeconds)
	}
	switch {
	case f.c.plain():
		if valid.UID {
			st.UID = strconv.FormatUint(uint64(attr.UID), 10)
		}
		if valid.GID {
			st.GID = strconv.FormatUint(uint64(attr.GID), 10)
		}
	default:
		if valid.UID {
			st.NUID = attr.UID
		}
		if valid.GID {
			st.NGID = attr.GID
		}
	}
	return f.oldWstat(ctx, st)
}

// oldReaddir reads whole entries; an entry's Offset is that behind it.
func (f *Fid) oldReaddir(ctx context.Context, offset uint64, count uint32) (p9.Dirents, error) {
	buf := make([]byte, count)
	n, err := f.Read(ctx, buf, int64(offset))
	if err != nil {
		return nil, err
	}
	var all p9.Dirents
	for data := buf[:n]; len(data) > 0; {
		st, rest, err := wire.NextStat(data)
		if err != nil {
			return nil, f.c.violated("Rread of a folder: %v", err)
		}
		if st.Name == "" || strings.ContainsAny(st.Name, "/\x00") {
			return nil, f.c.violated("Rread of a folder has the name %q", st.Name)
		}
		data = rest
		all = append(all, p9.Dirent{QID: st.QID, Offset: offset + uint64(n-len(data)), Type: p9.QIDType(wire.DirentType(oldType(&st))), Name: st.Name})
	}
	return all, nil
}

// oldRenameAt renames what the folder f has under a name, in that folder: that is
// all these dialects can do.
func (f *Fid) oldRenameAt(ctx context.Context, oldName string, dir *Fid, newName string) error {
	if f.QID().Path != dir.QID().Path {
		return &Error{Op: "wstat", Name: newName, Errno: syscall.EXDEV}
	}
	g, _, err := f.Walk(ctx, oldName)
	if err != nil {
		return err
	}
	st := f.c.unchanged()
	st.Name = newName
	return errors.Join(g.oldWstat(ctx, st), g.Clunk(context.WithoutCancel(ctx)))
}
