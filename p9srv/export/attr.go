package export

import (
	"syscall"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml/tree"
)

// attrMask is what a getattr answers: everything.
var attrMask = p9.AttrMask{
	Mode: true, NLink: true, UID: true, GID: true, RDev: true, ATime: true, MTime: true, CTime: true,
	INo: true, Size: true, Blocks: true, BTime: true, Gen: true, DataVersion: true,
}

// blockSize is the st_blksize told: the unit in which programs like to write.
const blockSize = 4096

const nanos = int64(1e9)

// qidType is the type half of a qid; what is neither folder nor link is plain.
func qidType(mode uint32) p9.QIDType {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return p9.TypeDir
	case unix.S_IFLNK:
		return p9.TypeSymlink
	}
	return p9.TypeRegular
}

// qidOf is the qid of an object. Its version moves with the contents: a folder's
// with its names, which its mtime tells. It is never 0, which would keep clients
// from caching.
func qidOf(a *tree.Attr) p9.QID {
	v := a.DataVersion
	if a.Mode&unix.S_IFMT != unix.S_IFREG {
		v = uint64(a.Version)
	}
	if a.Mode&unix.S_IFMT == unix.S_IFDIR {
		v ^= uint64(a.Mtime) * 0x9E3779B97F4A7C15
	}
	return p9.QID{Type: qidType(a.Mode), Version: fold(v), Path: uint64(a.OID)}
}

// fold hashes 64 bits to 32 that are not all zero.
func fold(v uint64) uint32 {
	v ^= v >> 33
	v *= 0xFF51AFD7ED558CCD
	v ^= v >> 33
	if h := uint32(v>>32) ^ uint32(v); h != 0 {
		return h
	}
	return 1
}

func attrOf(a *tree.Attr) p9.Attr {
	r := p9.Attr{
		Mode: p9.FileMode(a.Mode), UID: p9.UID(a.UID), GID: p9.GID(a.GID),
		NLink: p9.NLink(a.Nlink), RDev: p9.Dev(a.Rdev),
		Size: a.Size, BlockSize: blockSize, Blocks: a.Blocks,
		Gen: 1, // an oid is never used again
		// The version of the contents; its top bit says that they are changing.
		DataVersion: a.DataVersion,
	}
	r.ATimeSeconds, r.ATimeNanoSeconds = split(a.Atime)
	r.MTimeSeconds, r.MTimeNanoSeconds = split(a.Mtime)
	r.CTimeSeconds, r.CTimeNanoSeconds = split(a.Ctime)
	r.BTimeSeconds, r.BTimeNanoSeconds = split(a.Btime)
	return r
}

// split makes seconds (two's complement before 1970) and nanoseconds of a time.
func split(t int64) (sec, nsec uint64) {
	s, n := t/nanos, t%nanos
	if n < 0 {
		s, n = s-1, n+nanos
	}
	return uint64(s), uint64(n)
}

// join is split's inverse; EINVAL where it does not fit.
func join(sec, nsec uint64) (int64, error) {
	s := int64(sec)
	if nsec >= uint64(nanos) {
		return 0, syscall.EINVAL
	}
	const most = 1<<63 - 1
	if s > most/nanos-1 || s < -(most/nanos)+1 {
		return 0, syscall.EOVERFLOW
	}
	return s*nanos + int64(nsec), nil
}

// modeBits are the bits of a mode that a setattr changes.
const modeBits = 0o7777

// setAttrOf translates a setattr. A change of ctime alone is nothing: ours moves
// with every change.
func setAttrOf(valid p9.SetAttrMask, a p9.SetAttr) (tree.SetAttr, error) {
	var s tree.SetAttr
	if valid.Permissions {
		s.Mask |= tree.SetMode
		s.Mode = uint32(a.Permissions) & modeBits
	}
	if valid.UID && a.UID != p9.NoUID {
		s.Mask |= tree.SetUID
		s.UID = uint32(a.UID)
	}
	if valid.GID && a.GID != p9.NoGID {
		s.Mask |= tree.SetGID
		s.GID = uint32(a.GID)
	}
	if valid.Size {
		if a.Size > 1<<63-1 {
			return s, syscall.EINVAL
		}
		s.Mask |= tree.SetSize
		s.Size = a.Size
	}
	var err error
	switch {
	case valid.ATime && valid.ATimeNotSystemTime:
		s.Mask |= tree.SetAtime
		s.Atime, err = join(a.ATimeSeconds, a.ATimeNanoSeconds)
	case valid.ATime:
		s.Mask |= tree.SetAtimeNow
	}
	if err != nil {
		return s, err
	}
	switch {
	case valid.MTime && valid.MTimeNotSystemTime:
		s.Mask |= tree.SetMtime
		s.Mtime, err = join(a.MTimeSeconds, a.MTimeNanoSeconds)
	case valid.MTime:
		s.Mask |= tree.SetMtimeNow
	}
	return s, err
}
