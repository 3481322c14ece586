package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// attrCases are about attributes, the extended ones too.
var attrCases = []testCase{
	{"attrs", caseAttrs}, {"unlinkedattrs", caseUnlinkedAttrs}, {"times", caseTimes},
	{"xattrs", caseXattrs}, {"acl", caseACL}, {"aclfile", caseACLFile}, {"aclfolder", caseACLFolder}, {"aclumask", caseACLUmask},
	{"aclrights", caseACLRights},
}

func caseAttrs(e *env) error {
	if err := first(put(e.path("f"), "x"), os.Mkdir(e.path("d"), 0o755), os.Symlink("f", e.path("l"))); err != nil {
		return err
	}
	at := time.Unix(1_000_000_000, 0) // the client's clock has whole seconds when times are set
	for _, name := range []string{"f", "d"} {
		for _, mode := range []uint32{0, 0o777, 0o1755, 0o2750, 0o640} {
			var st unix.Stat_t
			if err := first(unix.Chmod(e.path(name), mode), unix.Stat(e.path(name), &st),
				want("mode of "+name, st.Mode&0o7777, mode)); err != nil {
				return err
			}
		}
		if err := first(os.Chown(e.path(name), 1001, 2000), os.Chtimes(e.path(name), at.Add(time.Hour), at)); err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Stat(e.path(name), &st); err != nil {
			return err
		}
		if st.Uid != 1001 || st.Gid != 2000 || st.Mtim.Nano() != at.UnixNano() || st.Atim.Nano() != at.Add(time.Hour).UnixNano() {
			return fmt.Errorf("%s: %d:%d, mtime %d, atime %d", name, st.Uid, st.Gid, st.Mtim.Nano(), st.Atim.Nano())
		}
	}
	var st unix.Stat_t
	ts := []unix.Timespec{{Sec: 1}, {Sec: 5}}
	if err := first(unix.Lchown(e.path("l"), 1000, 1000),
		unix.UtimesNanoAt(unix.AT_FDCWD, e.path("l"), ts, unix.AT_SYMLINK_NOFOLLOW), unix.Lstat(e.path("l"), &st)); err != nil {
		return err
	}
	if st.Uid != 1000 || st.Mtim.Sec != 5 {
		return fmt.Errorf("link: owner %d, mtime %v", st.Uid, st.Mtim)
	}
	return first(unix.Stat(e.path("f"), &st), want("owner behind the link", st.Uid, 1001))
}

func caseUnlinkedAttrs(e *env) error {
	f, err := os.OpenFile(e.path("f"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	fd := int(f.Fd())
	at := []unix.Timespec{{Sec: 11}, {Sec: 21}}
	for _, s := range []struct {
		what string
		do   func() error
	}{
		{"unlink", func() error { return os.Remove(e.path("f")) }},
		{"fstat", func() error { var st unix.Stat_t; return unix.Fstat(fd, &st) }},
		{"ftruncate", func() error { return unix.Ftruncate(fd, 5) }},
		{"fchmod", func() error { return unix.Fchmod(fd, 0o611) }},
		{"fchown", func() error { return unix.Fchown(fd, 1001, 2000) }},
		{"futimens", func() error { return futimens(fd, at) }},
		{"fsetxattr", func() error { return unix.Fsetxattr(fd, "user.gone", []byte("but here"), 0) }},
		{"fgetxattr", func() error {
			b := make([]byte, 100)
			n, err := unix.Fgetxattr(fd, "user.gone", b)
			return first(err, want("value", string(b[:max(n, 0)]), "but here"))
		}},
		{"fsync", func() error { return unix.Fsync(fd) }},
	} {
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	return first(want("size", st.Size, 5), want("mode", st.Mode&0o7777, 0o611), want("owner", st.Uid, 1001),
		want("group", st.Gid, 2000), want("mtime", st.Mtim.Nano(), 21_000_000_000), want("atime", st.Atim.Nano(), 11_000_000_000))
}

// futimens is utimensat(2) without a path.
func futimens(fd int, ts []unix.Timespec) error {
	return unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), ts, 0)
}

// caseTimes wants times to move with changes, and only with them.
func caseTimes(e *env) error {
	past := time.Unix(1_000_000_000, 0)
	if err := first(put(e.path("f"), "old"), os.Mkdir(e.path("d"), 0o755), os.Chtimes(e.path("f"), past, past), os.Chtimes(e.path("d"), past, past)); err != nil {
		return err
	}
	mtime := func(name string, moved bool) error {
		fi, err := os.Stat(e.path(name))
		if err != nil {
			return err
		}
		return want(fmt.Sprintf("movement of the mtime of %s (%v)", name, fi.ModTime()), !fi.ModTime().Equal(past), moved)
	}
	if err := first(os.Chmod(e.path("f"), 0o600), mtime("f", false), mtime("d", false)); err != nil {
		return err
	}
	if err := first(put(e.path("f"), "new"), mtime("f", true), put(e.path("d/x"), ""), mtime("d", true)); err != nil {
		return err
	}
	// Set while a writer still has it open, and kept when the writer closes.
	f, err := os.OpenFile(e.path("f"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString("now")
	if err := first(err, f.Sync(), os.Chtimes(e.path("f"), past, past), f.Close(), mtime("f", false)); err != nil {
		return err
	}
	return first(unix.UtimesNanoAt(unix.AT_FDCWD, e.path("f"), []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}, 0), mtime("f", true))
}

func caseXattrs(e *env) error {
	if err := first(put(e.path("f"), "x"), os.Mkdir(e.path("d"), 0o755)); err != nil {
		return err
	}
	big := bytes.Repeat([]byte("v"), 2000)
	for _, name := range []string{"f", "d"} {
		p := e.path(name)
		get := func(attr string, value []byte) error {
			b := make([]byte, 4000)
			n, err := unix.Getxattr(p, attr, b)
			if err != nil {
				return fmt.Errorf("get %s: %w", attr, err)
			}
			if !bytes.Equal(b[:n], value) {
				return fmt.Errorf("%s of %s has %d bytes, not %d, or others", attr, name, n, len(value))
			}
			return nil
		}
		_, missing := unix.Getxattr(p, "user.no", make([]byte, 10))
		_, small := unix.Getxattr(p, "user.none", make([]byte, 10))
		if err := first(refused("a missing one", missing, unix.ENODATA), refused("another", small, unix.ENODATA)); err != nil {
			return err
		}
		if err := first(
			unix.Setxattr(p, "user.a", []byte("1"), unix.XATTR_CREATE), get("user.a", []byte("1")),
			refused("create over", unix.Setxattr(p, "user.a", []byte("2"), unix.XATTR_CREATE), unix.EEXIST),
			refused("replace nothing", unix.Setxattr(p, "user.b", []byte("2"), unix.XATTR_REPLACE), unix.ENODATA),
			unix.Setxattr(p, "user.a", []byte("22"), unix.XATTR_REPLACE), get("user.a", []byte("22")),
			unix.Setxattr(p, "user.empty", nil, 0), get("user.empty", nil),
			unix.Setxattr(p, "user.big", big, 0), get("user.big", big),
			unix.Setxattr(p, "user.bin", []byte("a\x00b\xff"), 0), get("user.bin", []byte("a\x00b\xff")),
			unix.Setxattr(p, "trusted.t", []byte("t"), 0), get("trusted.t", []byte("t")),
		); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		_, short := unix.Getxattr(p, "user.big", make([]byte, 10))
		if err := refused("a short buffer", short, unix.ERANGE); err != nil {
			return err
		}
		if err := first(listed(p, "trusted.t user.a user.big user.bin user.empty"), unix.Removexattr(p, "user.big"),
			refused("remove twice", unix.Removexattr(p, "user.big"), unix.ENODATA), listed(p, "trusted.t user.a user.bin user.empty")); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// listed wants the attributes of a file, security labels aside, to be these.
func listed(path, expected string) error {
	b := make([]byte, 4000)
	n, err := unix.Listxattr(path, b)
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	var all []string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00") {
		if !strings.HasPrefix(name, "security.") {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return want("list", strings.Join(all, " "), expected)
}

// The tags of an ACL's entries (linux/posix_acl.h).
const (
	aclUserObj, aclUser, aclGroupObj, aclMask, aclOther = 1, 2, 4, 16, 32
)

// acl is the extended attribute of an ACL: for the owner, user 1000, the group,
// the mask and others.
func acl(owner, alice, group, mask, other uint16) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, x := range []struct {
		tag, perm uint16
		id        uint32
	}{{aclUserObj, owner, ^uint32(0)}, {aclUser, alice, 1000}, {aclGroupObj, group, ^uint32(0)},
		{aclMask, mask, ^uint32(0)}, {aclOther, other, ^uint32(0)}} {
		b = binary.LittleEndian.AppendUint16(b, x.tag)
		b = binary.LittleEndian.AppendUint16(b, x.perm)
		b = binary.LittleEndian.AppendUint32(b, x.id)
	}
	return b
}

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

func hasACL(path, attr string, value []byte) error {
	b := make([]byte, 1000)
	n, err := unix.Getxattr(path, attr, b)
	if err != nil {
		return fmt.Errorf("%s: %w", attr, err)
	}
	if !bytes.Equal(b[:n], value) {
		return fmt.Errorf("%s is %x, not %x", attr, b[:n], value)
	}
	return nil
}

func caseACL(e *env) error {
	if err := first(put(e.path("f"), "x"), os.Chmod(e.path("f"), 0o600)); err != nil {
		return err
	}
	if err := first(
		unix.Setxattr(e.path("f"), aclAccess, acl(6, 4, 0, 4, 0), 0), hasACL(e.path("f"), aclAccess, acl(6, 4, 0, 4, 0)), modeIs(e.path("f"), 0o640),
		os.Chmod(e.path("f"), 0o660), hasACL(e.path("f"), aclAccess, acl(6, 4, 0, 6, 0)),
	); err != nil {
		return err
	}
	return first(unix.Removexattr(e.path("f"), aclAccess), refused("removed", hasACL(e.path("f"), aclAccess, nil), unix.ENODATA))
}

// caseACLFile wants a file to inherit its folder's ACL.
func caseACLFile(e *env) error {
	def := acl(7, 6, 5, 7, 0)
	if err := first(unix.Setxattr(e.dir, aclDefault, def, 0), hasACL(e.dir, aclDefault, def), put(e.path("f"), "inherits")); err != nil {
		return err
	}
	return first(hasACL(e.path("f"), aclAccess, acl(6, 6, 5, 4, 0)), modeIs(e.path("f"), 0o640),
		unix.Removexattr(e.dir, aclDefault), refused("removed", hasACL(e.dir, aclDefault, nil), unix.ENODATA))
}

// caseACLFolder wants a folder to inherit its folder's ACL and pass it on.
func caseACLFolder(e *env) error {
	def := acl(7, 6, 5, 7, 0)
	return first(unix.Setxattr(e.dir, aclDefault, def, 0), os.Mkdir(e.path("d"), 0o777), modeIs(e.path("d"), 0o770),
		hasACL(e.path("d"), aclDefault, def), hasACL(e.path("d"), aclAccess, def))
}

// caseACLUmask wants a default ACL to stand in the umask's place.
func caseACLUmask(e *env) error {
	if err := unix.Setxattr(e.dir, aclDefault, acl(7, 6, 5, 7, 0), 0); err != nil {
		return err
	}
	defer unix.Umask(unix.Umask(0o077))
	return first(put(e.path("f"), "inherits"), modeIs(e.path("f"), 0o640))
}

func modeIs(path string, bits uint32) error {
	var st unix.Stat_t
	return first(unix.Stat(path, &st), want("mode of "+path, fmt.Sprintf("%o", st.Mode&0o7777), fmt.Sprintf("%o", bits)))
}

// caseACLRights wants an ACL to grant and to refuse.
func caseACLRights(e *env) error {
	if err := first(put(e.path("f"), "granted"), os.Chmod(e.path("f"), 0o600), put(e.path("g"), "refused"), os.Chmod(e.path("g"), 0o644),
		os.Chmod(e.dir, 0o777)); err != nil {
		return err
	}
	return first(asAlice("refused", "read", e.path("f")), asAlice("", "read", e.path("g")),
		unix.Setxattr(e.path("f"), aclAccess, acl(6, 4, 0, 4, 0), 0), unix.Setxattr(e.path("g"), aclAccess, acl(6, 0, 4, 4, 4), 0),
		asAlice("", "read", e.path("f")), asAlice("refused", "write", e.path("f")), asAlice("refused", "read", e.path("g")))
}
