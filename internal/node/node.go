package node

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// At is a name in an open folder, or with an empty name what the descriptor
// itself stands for.
type At struct {
	FD   int
	Name string
}

// Path is At for calls that take no descriptor; the name itself is the only
// part of it that may be a symbolic link. Without a name the path leads to what
// is open, a symbolic link included.
func (p At) Path() string {
	if p.Name == "" {
		return "/proc/self/fd/" + strconv.Itoa(p.FD)
	}
	return "/proc/self/fd/" + strconv.Itoa(p.FD) + "/" + p.Name
}

// flags are for calls that take a name.
func (p At) flags() int {
	if p.Name == "" {
		return unix.AT_EMPTY_PATH
	}
	return unix.AT_SYMLINK_NOFOLLOW
}

// Stat is lstat(2).
func (p At) Stat() (st unix.Stat_t, err error) {
	err = unix.Fstatat(p.FD, p.Name, &st, p.flags())
	return st, err
}

// Make makes the object that a create, mkdir, symlink or mknod tells of, for its
// owner alone and without contents. Dress gives it the rest.
func Make(p At, r *kml.Record) error {
	switch r.Op {
	case kml.OpCreate:
		return unix.Mknodat(p.FD, p.Name, unix.S_IFREG|0o600, 0)
	case kml.OpMkdir:
		return unix.Mkdirat(p.FD, p.Name, 0o700)
	case kml.OpSymlink:
		return unix.Symlinkat(r.Target, p.FD, p.Name)
	case kml.OpMknod:
		return unix.Mknodat(p.FD, p.Name, r.Attr.Mode&unix.S_IFMT|0o600, int(r.Attr.Rdev))
	}
	return fmt.Errorf("%v makes nothing: %w", r.Op, kml.ErrInvalid)
}

// Skip decides about an owner or an extended attribute that cannot be set: it
// returns the error that ends the dressing, or nil to go on without it.
type Skip func(what string, err error) error

// Forgive is a Skip that goes on where this process may not, or the file system
// cannot, and has count told of it.
func Forgive(count func(what string, err error)) Skip {
	return func(what string, err error) error {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) {
			count(what, err)
			return nil
		}
		return fmt.Errorf("%s: %w", what, err)
	}
}

// Own is the owner and group of what this process makes.
func Own() (uid, gid uint32) { return uint32(os.Geteuid()), uint32(os.Getegid()) }

// Dress sets what m names of a, and the extended attributes xs. Owners come
// first, since they take away set-id bits; times come last.
func Dress(p At, a kml.Attr, m kml.AttrMask, xs []kml.Xattr, symlink bool, skip Skip) error {
	if m&(kml.MaskUID|kml.MaskGID) != 0 {
		uid, gid := -1, -1
		if m&kml.MaskUID != 0 {
			uid = int(a.UID)
		}
		if m&kml.MaskGID != 0 {
			gid = int(a.GID)
		}
		if err := unix.Fchownat(p.FD, p.Name, uid, gid, p.flags()); err != nil {
			if err := skip("owner", err); err != nil {
				return err
			}
		}
	}
	for _, x := range xs {
		if err := SetXattr(p, x.Name, x.Value); err != nil {
			if err := skip("xattr "+strconv.Quote(x.Name), err); err != nil {
				return err
			}
		}
	}
	if m&kml.MaskMode != 0 && !symlink {
		if err := chmod(p, a.Mode&0o7777); err != nil {
			return fmt.Errorf("mode: %w", err)
		}
	}
	return SetTimes(p, a, m)
}

// chmod does not go through a symbolic link that somebody put there.
func chmod(p At, mode uint32) error {
	if p.Name == "" {
		return unix.Chmod(p.Path(), mode)
	}
	fd, err := unix.Openat(p.FD, p.Name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Chmod(At{FD: fd}.Path(), mode)
}

// SetXattr sets one extended attribute.
func SetXattr(p At, name string, value []byte) error {
	if p.Name == "" {
		return unix.Setxattr(p.Path(), name, value, 0)
	}
	return unix.Lsetxattr(p.Path(), name, value, 0)
}

// RemoveXattr removes one extended attribute; that it is not there is no error.
func RemoveXattr(p At, name string) error {
	remove := unix.Lremovexattr
	if p.Name == "" {
		remove = unix.Removexattr
	}
	if err := remove(p.Path(), name); err != unix.ENODATA {
		return err
	}
	return nil
}

// SetTimes sets the times that m names; an atime of 0 is not known and stays.
func SetTimes(p At, a kml.Attr, m kml.AttrMask) error {
	ts := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
	if m&kml.MaskAtime != 0 && a.Atime != 0 {
		ts[0] = Timespec(a.Atime)
	}
	if m&kml.MaskMtime != 0 {
		ts[1] = Timespec(a.Mtime)
	}
	if ts[0].Nsec == unix.UTIME_OMIT && ts[1].Nsec == unix.UTIME_OMIT {
		return nil
	}
	if p.Name == "" {
		return unix.UtimesNanoAt(unix.AT_FDCWD, p.Path(), ts[:], 0)
	}
	return unix.UtimesNanoAt(p.FD, p.Name, ts[:], unix.AT_SYMLINK_NOFOLLOW)
}

// Timespec is nanoseconds since 1970, before it too.
func Timespec(ns int64) unix.Timespec {
	sec, rest := ns/1e9, ns%1e9
	if rest < 0 {
		sec, rest = sec-1, rest+1e9
	}
	return unix.Timespec{Sec: sec, Nsec: rest}
}
