package replay

import (
	"slices"
	"testing"

	"github.com/mezzofs/mezzo/kml"
)

func TestNames(t *testing.T) {
	oid := func(i uint64) kml.OID { return kml.MakeOID(1, i) }
	var n Names
	for _, s := range []struct {
		r       kml.Record
		touched string
	}{
		{kml.Record{Op: kml.OpMkdir, OID: oid(1), Parent: kml.RootOID, Name: "a"}, "a"},
		{kml.Record{Op: kml.OpMkdir, OID: oid(2), Parent: oid(1), Name: "b"}, "a/b"},
		{kml.Record{Op: kml.OpCreate, OID: oid(3), Parent: oid(2), Name: "f"}, "a/b/f"},
		{kml.Record{Op: kml.OpLink, OID: oid(3), Parent: kml.RootOID, Name: "g"}, "g"},
		{kml.Record{Op: kml.OpStore, OID: oid(3)}, "a/b/f g"},
		{kml.Record{Op: kml.OpRename, OID: oid(2), Parent: oid(1), Name: "b", NewParent: kml.RootOID, NewName: "c"}, "a/b c"},
		{kml.Record{Op: kml.OpSetattr, OID: oid(3)}, "c/f g"},
		{kml.Record{Op: kml.OpSetattr, OID: kml.RootOID}, "."},
		{kml.Record{Op: kml.OpRename, OID: oid(1), Parent: kml.RootOID, Name: "a", NewParent: kml.RootOID, NewName: "c",
			Flags: kml.FlagExchange, Victim: &kml.Victim{OID: oid(2)}}, "a c"},
		{kml.Record{Op: kml.OpSetxattr, OID: oid(3), Name: "user.x"}, "a/f g"},
		{kml.Record{Op: kml.OpCreate, OID: oid(4), Parent: oid(1), Name: "h"}, "c/h"},
		{kml.Record{Op: kml.OpRename, OID: oid(4), Parent: oid(1), Name: "h", NewParent: kml.RootOID, NewName: "g",
			Victim: &kml.Victim{OID: oid(3)}}, "c/h g"},
		{kml.Record{Op: kml.OpSetattr, OID: oid(3)}, "a/f"},
		{kml.Record{Op: kml.OpUnlink, OID: oid(3), Parent: oid(2), Name: "f"}, "a/f"},
		{kml.Record{Op: kml.OpSetattr, OID: oid(3)}, ""},
		{kml.Record{Op: kml.OpCreate, OID: oid(5), Parent: oid(99), Name: "x"}, "?1:99/x"},
		{kml.Record{Op: kml.OpMark}, ""},
	} {
		got := n.Touched(&s.r)
		slices.Sort(got)
		all := ""
		for i, p := range got {
			if i > 0 {
				all += " "
			}
			all += p
		}
		if all != s.touched {
			t.Errorf("%s: touched %q, want %q", kml.AppendText(nil, &s.r), all, s.touched)
		}
		n.Apply(&s.r)
	}
}

// TestNamesInACircle asks for a path in a log that no tree can have written.
func TestNamesInACircle(t *testing.T) {
	var n Names
	n.Apply(&kml.Record{Op: kml.OpMkdir, OID: 10, Parent: 11, Name: "a"})
	n.Apply(&kml.Record{Op: kml.OpMkdir, OID: 11, Parent: 10, Name: "b"})
	if dir, ok := n.Dir(10); ok {
		t.Fatal(dir)
	}
}
