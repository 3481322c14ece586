package tree

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

func TestSlotsKnowTheirFormat(t *testing.T) {
	path := filepath.Join(t.TempDir(), "slots")
	s := must[*Slots](t)(OpenSlots(path, 4, 64))
	slot := must[int](t)(s.Put(ctx, []byte("one")))
	ok(t, s.Close())
	s = must[*Slots](t)(OpenSlots(path, 4, 64))
	if got := s.All(); len(got) != 1 || string(got[slot]) != "one" {
		t.Errorf("opened again it has %v", got)
	}
	ok(t, s.Close())
	_, err := OpenSlots(path, 4, 32)
	wantErr(t, err, kml.ErrNewer)
	b := must[[]byte](t)(os.ReadFile(path))
	b[4] = 9
	ok(t, os.WriteFile(path, b, 0o600))
	_, err = OpenSlots(path, 4, 64)
	wantErr(t, err, kml.ErrNewer)
	copy(b, "text")
	ok(t, os.WriteFile(path, b, 0o600))
	_, err = OpenSlots(path, 4, 64)
	wantErr(t, err, unix.EINVAL)
	ok(t, os.WriteFile(path, make([]byte, 300), 0o600)) // a power cut
	s = must[*Slots](t)(OpenSlots(path, 4, 64))
	if got := s.All(); len(got) != 0 {
		t.Errorf("zeros have %v", got)
	}
	ok(t, s.Close())
}

// TestSlotsFailingDisk: a store into a mapping that the file system does not
// honour is an error and not the process's end.
func TestSlotsFailingDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "slots")
	s := must[*Slots](t)(OpenSlots(path, 4, 8192))
	defer s.Close()
	if s.m == nil {
		t.Skip("this file system's files are not mapped")
	}
	ok(t, os.Truncate(path, 0)) // a SIGBUS behind its end
	for range 8 {               // a slot is not lost by it
		_, err := s.Put(ctx, []byte("one"))
		wantErr(t, err, unix.EIO)
	}
	ok(t, os.Truncate(path, s.at(4)))
	slot := must[int](t)(s.Put(ctx, []byte("one")))
	if b := must[[]byte](t)(s.read(slot)); string(b) != "one" {
		t.Errorf("the slot has %q", b)
	}
	ok(t, s.Close())
	if _, err := s.Put(ctx, []byte("one")); err == nil {
		t.Error("a closed table takes more")
	}
}

// TestXattrsTooLargeForTheirOldValue: two values of 64 KiB do not fit a record;
// the change is logged without the old one.
func TestXattrsTooLargeForTheirOldValue(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "mezzo")
	if err != nil {
		t.Skipf("no /dev/shm: %v", err)
	}
	defer os.RemoveAll(dir)
	big := make([]byte, 64<<10)
	probe := filepath.Join(dir, "x")
	ok(t, os.WriteFile(probe, nil, 0o600))
	if err := unix.Setxattr(probe, "user.big", big, 0); err != nil {
		t.Skipf("/dev/shm has no xattrs of this size: %v", err)
	}
	ok(t, unix.Removexattr(probe, "user.big"))
	ok(t, Init(dir, Options{NoWatch: true}))
	tr := must[*Tree](t)(Open(dir, Options{NoWatch: true}))
	defer func() { ok(t, tr.Close()) }()
	a := must[Attr](t)(tr.Lookup(ctx, nil, kml.RootOID, "x"))
	ok(t, tr.Setxattr(ctx, nil, a.OID, "user.big", big, 0))
	big[0] = 1
	ok(t, tr.Setxattr(ctx, nil, a.OID, "user.big", big, 0))
	rs := records(t, tr)
	r := rs[len(rs)-1]
	if r.Op != kml.OpSetxattr || string(r.Value) != string(big) || r.HadOld || len(r.OldValue) > 0 {
		t.Errorf("%v of %d bytes, old %v %d", r.Op, len(r.Value), r.HadOld, len(r.OldValue))
	}
	checkReplay(t, tr)
}
