package export

import (
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
)

// TestFits sends changes of attributes that were made against values the object no
// longer has, and makes objects again that were removed.
func TestFits(t *testing.T) {
	m := newMaster(t, JournalOptions{})
	root := m.serve(t)
	a, b := enter(t, root, feed.Hello{}), enter(t, root, feed.Hello{})
	oid := kml.MakeOID(a.Site, 1)
	seqs := map[*site]uint64{a: 1}
	send := func(s *site, r *kml.Record, status feed.Status, errno syscall.Errno) {
		t.Helper()
		seqs[s]++
		r.Origin, r.Time = kml.Origin{Site: s.Site, Seq: seqs[s]}, 1e18
		if o := s.apply(r)[0]; o.Status != status || syscall.Errno(o.Errno) != errno {
			t.Fatalf("%s: %+v", kml.AppendText(nil, r), o)
		}
	}
	if o := a.apply(a.mkfile(1, "f"))[0]; o.Status != feed.Applied {
		t.Fatalf("%+v", o)
	}
	chmod := func(old, now uint32) *kml.Record {
		return &kml.Record{Op: kml.OpSetattr, OID: oid, Mask: kml.MaskMode, HadOld: true,
			Old: kml.Attr{Mode: unix.S_IFREG | old}, Attr: kml.Attr{Mode: unix.S_IFREG | now}}
	}
	send(a, chmod(0o644, 0o600), feed.Applied, 0)
	send(b, chmod(0o644, 0o640), feed.Conflict, syscall.EBUSY)
	send(b, chmod(0o644, 0o600), feed.Applied, 0) // the same on both sides
	send(b, chmod(0o600, 0o640), feed.Applied, 0)
	xattr := func(had bool, old, value string) *kml.Record {
		r := &kml.Record{Op: kml.OpSetxattr, OID: oid, Name: "user.x", Value: []byte(value), HadOld: had, OldValue: []byte(old)}
		if value == "" {
			r.Op, r.Value = kml.OpRemovexattr, nil
		}
		return r
	}
	send(a, xattr(false, "", "1"), feed.Applied, 0)
	send(b, xattr(false, "", "2"), feed.Conflict, syscall.EBUSY)
	send(b, xattr(false, "", "1"), feed.Applied, 0)
	send(b, xattr(true, "0", ""), feed.Conflict, syscall.EBUSY)
	send(b, xattr(true, "1", ""), feed.Applied, 0)

	// An object of another's may be made again when it is gone, and no other.
	again := a.mkfile(0, "f")
	again.OID = oid
	send(b, again, feed.Refused, syscall.EPERM)
	again.Flags = kml.FlagConflict
	again.Name = "g"
	send(b, again, feed.Conflict, syscall.EEXIST)
	send(a, &kml.Record{Op: kml.OpUnlink, Parent: kml.RootOID, Name: "f", OID: oid}, feed.Applied, 0)
	send(b, again, feed.Applied, 0)
	never := a.mkfile(0, "h")
	never.OID, never.Flags = kml.MakeOID(a.Site, 99), kml.FlagConflict
	send(b, never, feed.Refused, syscall.EPERM)
	never.OID = kml.MakeOID(77, 1)
	send(b, never, feed.Refused, syscall.EPERM)
	never.OID = kml.MakeOID(0, 1)
	send(b, never, feed.Refused, syscall.EPERM)
}
