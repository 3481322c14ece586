package tree

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// programCaps is cap_net_raw=ep as security.capability holds it (version 2 of
// vfs_cap_data in linux/capability.h).
var programCaps = append([]byte{1, 0, 0, 2, 0, 0x20, 0, 0}, make([]byte, 12)...)

// users is a tree whose root everybody may write to, and somebody.
func users(t *testing.T) (*Tree, *Cred) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to act as others")
	}
	tr := newTree(t)
	must[Attr](t)(tr.Setattr(ctx, nil, kml.RootOID, nil, SetAttr{Mask: SetMode, Mode: 0o777}))
	return tr, &Cred{UID: 4711, GID: 4712, Groups: []uint32{4713}}
}

// program is root's, and anybody's to write.
func program(t *testing.T, tr *Tree, name string) Attr {
	t.Helper()
	a := put(t, tr, kml.RootOID, name, "#!")
	a = must[Attr](t)(tr.Setattr(ctx, nil, a.OID, nil, SetAttr{Mask: SetMode, Mode: 0o6777}))
	ok(t, tr.Setxattr(ctx, nil, a.OID, capability, programCaps, 0))
	return a
}

// plain checks that a program has lost what it could, in tree and index.
func plain(t *testing.T, tr *Tree, oid kml.OID, how string) {
	t.Helper()
	a := must[Attr](t)(tr.Getattr(ctx, nil, oid))
	if a.Mode&07777 != 0o777 {
		t.Errorf("%s: mode is %#o, want 0777", how, a.Mode&07777)
	}
	if o := must[*Object](t)(tr.index.Get(oid)); o.Attr.Mode != a.Mode {
		t.Errorf("%s: the log has mode %#o, the file %#o", how, o.Attr.Mode, a.Mode)
	}
	_, err := tr.Getxattr(ctx, nil, oid, capability)
	wantErr(t, err, syscall.ENODATA)
	if !logged(t, tr, kml.OpRemovexattr, oid) {
		t.Errorf("%s: the log does not say that the capabilities went", how)
	}
	checkAgrees(t, tr)
}

func logged(t *testing.T, tr *Tree, op kml.Op, oid kml.OID) bool {
	t.Helper()
	rd := must[*kml.Reader](t)(tr.Log().ReaderAfter(0))
	defer rd.Close()
	for {
		r, err := rd.TryNext()
		if err != nil {
			return false
		}
		if r.Op == op && r.OID == oid {
			return true
		}
	}
}

// TestUserHasNoCapabilities: setting the file-system uid leaves a thread some.
func TestUserHasNoCapabilities(t *testing.T) {
	tr, u := users(t)
	mine, h, err := tr.Create(ctx, u, kml.RootOID, "mine", unix.O_RDWR, 0o755)
	ok(t, err)
	ok(t, h.Close())
	for _, oid := range []kml.OID{mine.OID, put(t, tr, kml.RootOID, "root's", "x").OID} {
		wantErr(t, tr.Setxattr(ctx, u, oid, capability, programCaps, 0), syscall.EPERM)
		wantErr(t, tr.Setxattr(ctx, u, oid, "trusted.x", []byte("x"), 0), syscall.EPERM)
	}
	ok(t, tr.Setxattr(ctx, u, mine.OID, "user.x", []byte("x"), 0))
	// The thread is the process's again, with all it had.
	ok(t, tr.Setxattr(ctx, nil, mine.OID, "trusted.x", []byte("x"), 0))
	checkAgrees(t, tr)
}

func TestWriteTakesPrivileges(t *testing.T) {
	tr, u := users(t)
	a := program(t, tr, "written")
	h := must[Handle](t)(tr.Open(ctx, u, a.OID, unix.O_WRONLY))
	must[int](t)(h.WriteAt(ctx, []byte("evil"), 0))
	ok(t, h.Close())
	plain(t, tr, a.OID, "write")

	a = program(t, tr, "cut")
	must[Attr](t)(tr.Setattr(ctx, u, a.OID, nil, SetAttr{Mask: SetSize}))
	plain(t, tr, a.OID, "truncate")
}

func TestReintegrateTakesPrivileges(t *testing.T) {
	tr, u := users(t)
	c := newClient(t, tr)
	a := program(t, tr, "stored")
	r := c.rec(kml.OpStore)
	r.OID, r.Attr.Size, r.Base.Pos = a.OID, 4, must[*Object](t)(tr.index.Get(a.OID)).DataVersion
	if res := tr.Reintegrate(ctx, u, r, c.stage(t, r.Origin.Seq, "evil")); res.Status != ReintApplied {
		t.Fatalf("%+v", res)
	}
	plain(t, tr, a.OID, "store")
}

// TestReintegrateMakesAsTheUser: a record's owner is only what a client says.
func TestReintegrateMakesAsTheUser(t *testing.T) {
	tr, u := users(t)
	c := newClient(t, tr)
	make := func(name string, attr kml.Attr, xs ...kml.Xattr) (ReintResult, kml.OID) {
		r := c.rec(kml.OpCreate)
		r.OID, r.Parent, r.Name, r.Attr, r.Xattrs = c.oid(), kml.RootOID, name, attr, xs
		r.Attr.Mode |= unix.S_IFREG
		return tr.Reintegrate(ctx, u, r, ""), r.OID
	}
	for name, want := range map[string]kml.Attr{
		"root's":     {UID: 0, GID: 0, Mode: 0o6755},
		"own":        {UID: 4711, GID: 4713, Mode: 0o4755, Mtime: -5e9},
		"not in it":  {UID: 4711, GID: 0, Mode: 0o644},
		"somebody's": {UID: 99, GID: 4713, Mode: 0o600},
	} {
		res, oid := make(name, want)
		if res.Status != ReintApplied {
			t.Fatalf("%s: %+v", name, res)
		}
		a := must[Attr](t)(tr.Getattr(ctx, nil, oid))
		gid, mode := uint32(4712), want.Mode&0o777
		if name == "own" {
			gid, mode = 4713, want.Mode
			if a.Mtime != want.Mtime {
				t.Errorf("mtime is %d", a.Mtime)
			}
		}
		if a.UID != 4711 || a.GID != gid || a.Mode&07777 != mode {
			t.Errorf("%s: %d:%d mode %#o, want 4711:%d mode %#o", name, a.UID, a.GID, a.Mode&07777, gid, mode)
		}
	}
	if res, _ := make("able", kml.Attr{UID: 4711, GID: 4712, Mode: 0o755}, kml.Xattr{Name: capability, Value: programCaps}); res.Errno != syscall.EPERM {
		t.Errorf("a program with capabilities: %+v", res)
	}
	if _, err := os.Lstat(filepath.Join(tr.dir, "able")); !os.IsNotExist(err) {
		t.Error(err)
	}
	checkAgrees(t, tr)
}
