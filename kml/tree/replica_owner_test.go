package tree

import (
	"testing"

	"github.com/mezzofs/mezzo/kml"
)

func TestOwnerMap(t *testing.T) {
	var m OwnerMap
	for _, rule := range []string{"uid:1000=2000", "uid:1001-1010=3000", "uid:root=5", "uid:*=99", "gid:7=root", "gid:7=8"} {
		if err := m.Add(rule); err != nil {
			t.Fatal(err)
		}
	}
	r := &Replica{owners: m, t: &Tree{root: true}}
	for _, c := range []struct{ uid, gid, wantUID, wantGID uint32 }{
		{1000, 7, 2000, 0}, {1001, 8, 3000, 8}, {1010, 0, 3000, 0}, {1011, 1, 99, 1}, {0, 2, 5, 2},
	} {
		if u, g := r.ownerHere(kml.Attr{UID: c.uid, GID: c.gid}); u != c.wantUID || g != c.wantGID {
			t.Errorf("%d:%d is %d:%d", c.uid, c.gid, u, g)
		}
	}
	var again OwnerMap
	for _, rule := range []string{"uid:1000-1000=2000", "uid:1001-1010=3000", "uid:0-0=5", "uid:*=99", "gid:7-7=0", "gid:7-7=8"} {
		if err := again.Add(rule); err != nil {
			t.Fatal(err)
		}
	}
	if again.String() != m.String() {
		t.Errorf("%s is not %s", m.String(), again.String())
	}
	for _, bad := range []string{"", "1=2", "uid:1", "uid:=2", "uid:1=", "oid:1=2", "uid:2-1=3", "uid:1=4294967295", "uid:99999999999=1",
		"uid:1=nobody-of-that-name", "gid:no-such-group=1"} {
		if err := new(OwnerMap).Add(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
