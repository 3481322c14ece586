package tree

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// aclFor is an access list of mode bits and one more user
// (linux/posix_acl_xattr.h).
func aclFor(mode uint32, user uint32, rights uint16) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	add := func(tag, perm uint16, id uint32) {
		b = binary.LittleEndian.AppendUint16(b, tag)
		b = binary.LittleEndian.AppendUint16(b, perm)
		b = binary.LittleEndian.AppendUint32(b, id)
	}
	const none = ^uint32(0)
	add(1, uint16(mode>>6&7), none)
	add(2, rights, user)
	add(4, uint16(mode>>3&7), none)
	add(16, uint16(mode>>3&7), none)
	add(32, uint16(mode&7), none)
	return b
}

// xattrLog is what the log says of attributes and modes, an entry a record.
func xattrLog(t *testing.T, tr *Tree, after kml.Position) (out []string) {
	t.Helper()
	for _, r := range records(t, tr) {
		if r.Pos <= after {
			continue
		}
		name := "?"
		if r.OID == kml.RootOID {
			name = "/"
		} else if o, err := tr.index.Get(r.OID); err == nil {
			name = o.Name
		}
		switch r.Op {
		case kml.OpSetxattr:
			v := string(r.Value)
			if strings.HasPrefix(r.Name, "system.") {
				v = fmt.Sprint(len(v), "B")
			}
			out = append(out, fmt.Sprintf("%s %s=%s", name, r.Name, v))
		case kml.OpRemovexattr:
			out = append(out, fmt.Sprintf("%s -%s", name, r.Name))
		case kml.OpSetattr:
			if r.Mask&kml.MaskMode != 0 {
				out = append(out, fmt.Sprintf("%s %03o", name, r.Attr.Mode&07777))
			}
		}
	}
	return out
}

// setForeign changes attributes as other programs do.
func setForeign(t *testing.T, dir string) {
	t.Helper()
	for _, p := range []string{"setfattr", "setfacl"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip(err)
		}
	}
	cmd := exec.Command("sh", "-c", `set -e
setfattr -n user.changed -v new f
setfattr -n user.made -v 1 f
setfattr -x user.gone f
setfattr -n user.on -v folder d
setfattr -n user.on -v root .
setfacl -m u:1234:rw acl
`)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

var foreignWant = []string{"/ user.on=root", "acl " + aclXattr + "=44B", "d user.on=folder",
	"acl 660", "f -user.gone", "f user.changed=new", "f user.made=1"}

func xattrTree(t *testing.T, o Options) *Tree {
	t.Helper()
	dir := t.TempDir()
	ok(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
	for _, n := range []string{"f", "acl"} {
		ok(t, os.WriteFile(filepath.Join(dir, n), []byte(n), 0o640))
	}
	if err := unix.Setxattr(filepath.Join(dir, "f"), "user.gone", []byte("x"), 0); err != nil {
		t.Skipf("no attributes here: %v", err)
	}
	ok(t, Init(dir, o))
	tr := must[*Tree](t)(Open(dir, o))
	t.Cleanup(func() { ok(t, tr.Close()) })
	a := must[Attr](t)(tr.Lookup(ctx, nil, kml.RootOID, "f"))
	ok(t, tr.Setxattr(ctx, nil, a.OID, "user.changed", []byte("old"), 0))
	return tr
}

func sameEntries(got, want []string) bool {
	count := make(map[string]int)
	for _, g := range got {
		count[g]++
	}
	for _, w := range want {
		count[w]--
	}
	for _, n := range count {
		if n != 0 {
			return false
		}
	}
	return true
}

func TestForeignXattrsAreWatched(t *testing.T) {
	tr := xattrTree(t, Options{})
	if tr.watcher == nil {
		t.Skip("no fanotify here")
	}
	start := tr.log.End()
	setForeign(t, tr.Dir())
	waitFor(t, tr, "the attributes", func() bool { return len(xattrLog(t, tr, start)) >= len(foreignWant) })
	if got := xattrLog(t, tr, start); !sameEntries(got, foreignWant) {
		t.Errorf("log says\n%q, want\n%q", got, foreignWant)
	}
}

func TestForeignXattrsAreScanned(t *testing.T) {
	tr := xattrTree(t, Options{NoWatch: true})
	start := tr.log.End()
	ok(t, tr.Scan(ctx))
	if got := xattrLog(t, tr, start); len(got) > 0 {
		t.Errorf("nothing was changed, and the log says %q", got)
	}
	setForeign(t, tr.Dir())
	ok(t, tr.Scan(ctx))
	ok(t, tr.Scan(ctx))
	if got := xattrLog(t, tr, start); !sameEntries(got, foreignWant) {
		t.Errorf("log says\n%q, want\n%q", got, foreignWant)
	}
	checkReplay(t, tr)
}

// TestForeignXattrsBehindOwnChanges: what others did is journaled though a change
// of our own comes between it and the look.
func TestForeignXattrsBehindOwnChanges(t *testing.T) {
	tr := xattrTree(t, Options{NoWatch: true})
	a := must[Attr](t)(tr.Lookup(ctx, nil, kml.RootOID, "f"))
	path := filepath.Join(tr.Dir(), "f")
	start := tr.log.End()
	ok(t, unix.Setxattr(path, "user.made", []byte("1"), 0))
	ok(t, os.Chmod(path, 0o600))
	must[Attr](t)(tr.Setattr(ctx, nil, a.OID, nil, SetAttr{Mask: SetMode, Mode: 0o644}))
	want := []string{"f user.made=1", "f 600", "f 644"}
	if got := xattrLog(t, tr, start); !sameEntries(got, want) {
		t.Errorf("log says %q, want %q", got, want)
	}
	// A file that is being written: mode and owner are seen with its store, the
	// rest by its event.
	h := must[Handle](t)(tr.Open(ctx, nil, a.OID, unix.O_RDWR))
	must[int](t)(h.WriteAt(ctx, []byte("more"), 0))
	start = tr.log.End()
	ok(t, os.Chmod(path, 0o755))
	ok(t, unix.Setxattr(path, "user.made", []byte("2"), 0))
	ok(t, tr.reconcileSeen(ctx, kml.RootOID, "f", seenAttrs))
	ok(t, os.Chmod(path, 0o711))
	ok(t, h.Close())
	want = []string{"f user.made=2", "f 755", "f 711"}
	if got := xattrLog(t, tr, start); !sameEntries(got, want) {
		t.Errorf("of a file being written the log says %q, want %q", got, want)
	}
	checkReplay(t, tr)
}

// TestModeChangesTellOfTheirACL: a change of mode is a change of the access list.
func TestModeChangesTellOfTheirACL(t *testing.T) {
	tr := xattrTree(t, Options{NoWatch: true})
	a := must[Attr](t)(tr.Lookup(ctx, nil, kml.RootOID, "acl"))
	if err := tr.Setxattr(ctx, nil, a.OID, aclXattr, aclFor(0o640, 1234, 6), 0); err != nil {
		t.Skipf("no access lists here: %v", err)
	}
	start := tr.log.End()
	must[Attr](t)(tr.Setattr(ctx, nil, a.OID, nil, SetAttr{Mask: SetMode, Mode: 0o660}))
	rs := records(t, tr)
	last := rs[len(rs)-1]
	if last.Pos <= start || last.Name != aclXattr || string(last.Value) != string(aclFor(0o660, 1234, 6)) {
		// The mask has the group's bits, the group entry keeps its own.
		v := must[[]byte](t)(tr.Getxattr(ctx, nil, a.OID, aclXattr))
		if string(last.Value) != string(v) {
			t.Errorf("the last record is %v %q %x; on disk is %x", last.Op, last.Name, last.Value, v)
		}
	}
	ok(t, tr.Scan(ctx))
	if end := tr.log.End(); end != last.Pos {
		t.Errorf("a scan found something in it: %q", xattrLog(t, tr, last.Pos))
	}
}

// TestImportTellsOfTheRoot: the root's own attributes are in the log.
func TestImportTellsOfTheRoot(t *testing.T) {
	dir := t.TempDir()
	ok(t, os.Chmod(dir, 0o751))
	if err := unix.Setxattr(dir, "user.root", []byte("yes"), 0); err != nil {
		t.Skipf("no attributes here: %v", err)
	}
	ok(t, Init(dir, Options{NoWatch: true}))
	tr := must[*Tree](t)(Open(dir, Options{NoWatch: true}))
	defer func() { ok(t, tr.Close()) }()
	want := []string{"/ 751", "/ user.root=yes"}
	if got := xattrLog(t, tr, 0); !sameEntries(got, want) {
		t.Errorf("log says %q, want %q", got, want)
	}
	end := tr.log.End()
	ok(t, tr.Scan(ctx))
	if got := xattrLog(t, tr, end); len(got) > 0 {
		t.Errorf("a scan found %q", got)
	}
}
