package kml_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/conflict"
	"github.com/mezzofs/mezzo/kml/conflict/conflicttest"
)

func records(cs []conflicttest.Change) (rs []*kml.Record) {
	for _, c := range cs {
		rs = append(rs, c.Rec)
	}
	return rs
}

// optimized is a client's local log without what it can do without.
func optimized(cs []conflicttest.Change, o kml.OptimizeOptions) (out []conflicttest.Change) {
	for i, k := range kml.Optimize(records(cs), o) {
		if k.Rec != nil {
			out = append(out, conflicttest.Change{Rec: k.Rec, Data: cs[i].Data})
		}
	}
	return out
}

func run(t *testing.T, c *conflicttest.Client, text string) {
	t.Helper()
	for _, s := range strings.Split(text, ";") {
		if f := strings.Fields(s); len(f) > 0 {
			if err := c.Do(f); err != nil {
				t.Fatalf("%s: %v", s, err)
			}
		}
	}
}

// TestOptimize says what each rule comes to, and where it stops.
func TestOptimize(t *testing.T) {
	for _, c := range []struct {
		does string
		want string // the operations that stay
	}{
		{"write f 1; write f 2; write f 3", "store"},
		{"write f 1; rename f g; write g 2", "store rename store"},
		{"write f 1; link f g; write g 2", "store link store"},
		{"write f 1; write k 2; write f 3", "store store"},
		{"chmod f 600; chmod f 601", "setattr"},
		{"chmod f 600; chmod f 644", ""},
		{"chmod f 600; write f 1; chmod f 644", "setattr store setattr"},
		{"chmod d 700; create d/x; chmod d 755", "setattr create setattr"},
		{"chmod d 700; create d/x; unlink d/x; chmod d 755", ""},
		{"setxattr f user.x 1; setxattr f user.x 2", "setxattr"},
		{"setxattr f user.x 1; removexattr f user.x", ""},
		{"setxattr f user.x 1; setxattr f user.y 2", "setxattr setxattr"},
		{"create n 1; unlink n", ""},
		{"create n 1; write n 2; chmod n 600; setxattr n user.x 1; rename n m; unlink m", ""},
		{"create n 1; link n m; unlink n", "create store link unlink"},
		{"create n 1; link n m; unlink n; unlink m", ""},
		{"symlink n x; unlink n", ""},
		{"link f n; unlink n", ""},
		{"link f n; unlink f; unlink n", "link unlink unlink"},
		{"link f n; write f 1; unlink n", "link store unlink"},
		{"mkdir n; rmdir n", ""},
		{"mkdir n; mkdir n/m; create n/m/x 1; unlink n/m/x; rmdir n/m; rmdir n", ""},
		{"mkdir n; create n/x 1; rename n/x y; rmdir n", "mkdir create store rename rmdir"},
		{"mkdir n; rename f n/f; rename n/f g; rmdir n", "rename"},
		{"rename f a; rename a b; rename b c", "rename"},
		{"rename f a; rename a f", ""},
		{"rename f t; rename k f; rename t k", "rename rename rename"},
		{"rename f a; create f 1; rename a b", "rename create store rename"},
		{"rename f a; create b 1; unlink b; rename a b", "rename"},
		{"rename d a; rename k a/k; rename a b", "rename rename rename"},
		{"create t 1; rename t n", "create store rename"},
		{"create t 1; rename t f", "create store rename"},
		{"create t 1; rename t f; create t 2; rename t f; create t 3; rename t f", "create store rename"},
		{"create t 1; rename t f; create t 2; rename t f; unlink f", "create store rename unlink"},
		{"create f2 1; create t 2; rename t f2", "create store rename"},
		{"exchange f k; exchange f k", "rename rename"},
		{"unlink f; create f 1; unlink f", "unlink"},
		{"unlink f; create f 1; write f 2", "unlink create store"},
	} {
		m := conflicttest.NewMaster()
		setup := m.NewClient("setup", 1)
		run(t, setup, "create f 0; create k kkk; mkdir d")
		if err := setup.Sync(); err != nil {
			t.Fatal(err)
		}
		cl := m.NewClient("c", 2)
		run(t, cl, c.does)
		want := cl.View.String()
		cl.Local = optimized(cl.Local, kml.OptimizeOptions{})
		var got []string
		for _, k := range cl.Local {
			got = append(got, k.Rec.Op.String())
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s: %s, must be %s", c.does, s, c.want)
		}
		if err := cl.Sync(); err != nil {
			t.Errorf("%s: %v", c.does, err)
		}
		if got := m.Tree.String(); got != want {
			t.Errorf("%s: %s, must be %s", c.does, got, want)
		}
	}
}

// TestOptimizeFrozen keeps what has its number, and what depends on it.
func TestOptimizeFrozen(t *testing.T) {
	store := func() *kml.Record { return &kml.Record{Op: kml.OpStore, OID: 7} }
	rs := []*kml.Record{store(), store(), store(), store()}
	out := kml.Optimize(rs, kml.OptimizeOptions{Frozen: func(i int) bool { return i == 1 }})
	if out[0].Rec != rs[0] || out[1].Rec != rs[1] || out[2].Rec != nil || out[3].Rec == nil || out[3].First != 2 {
		t.Errorf("%+v", out)
	}
	rs = []*kml.Record{{Op: kml.OpCreate, OID: 8, Parent: 1, Name: "a"}, {Op: kml.OpUnlink, OID: 8, Parent: 1, Name: "a"}}
	out = kml.Optimize(rs, kml.OptimizeOptions{Frozen: func(i int) bool { return i == 0 }})
	if out[0].Rec != rs[0] || out[1].Rec != rs[1] {
		t.Errorf("%+v", out)
	}
}

// TestOptimizeValues holds what joined records say against the first and the last
// of them.
func TestOptimizeValues(t *testing.T) {
	base := kml.Base{Pos: 5}
	for _, c := range []struct {
		rs   []*kml.Record
		want *kml.Record
	}{
		{[]*kml.Record{
			{Op: kml.OpStore, OID: 7, Base: base, Attr: kml.Attr{Size: 9, Mtime: 1}, Extents: []kml.Extent{{Off: 0, Len: 4}, {Off: 8, Len: 1}}, Digest: []byte("a")},
			{Op: kml.OpStore, OID: 7, Base: kml.Base{Seq: 3}, Attr: kml.Attr{Size: 7, Mtime: 2}, Extents: []kml.Extent{{Off: 3, Len: 3}}, Digest: []byte("b")},
		}, &kml.Record{Op: kml.OpStore, OID: 7, Base: base, Attr: kml.Attr{Size: 7, Mtime: 2}, Extents: []kml.Extent{{Off: 0, Len: 6}, {Off: 8, Len: 1}}, Digest: []byte("b")}},
		{[]*kml.Record{
			{Op: kml.OpStore, OID: 7, Base: base, Extents: []kml.Extent{}},
			{Op: kml.OpStore, OID: 7},
		}, &kml.Record{Op: kml.OpStore, OID: 7, Base: base}},
		{[]*kml.Record{
			{Op: kml.OpSetattr, OID: 7, Mask: kml.MaskMode | kml.MaskMtime, Attr: kml.Attr{Mode: 0o600, Mtime: 5}, Old: kml.Attr{Mode: 0o644, Mtime: 1}},
			{Op: kml.OpSetattr, OID: 7, Mask: kml.MaskMode | kml.MaskUID, Attr: kml.Attr{Mode: 0o601, UID: 9}, Old: kml.Attr{Mode: 0o600, UID: 3}},
		}, &kml.Record{Op: kml.OpSetattr, OID: 7, Mask: kml.MaskMode | kml.MaskMtime | kml.MaskUID, Attr: kml.Attr{Mode: 0o601, Mtime: 5, UID: 9}, Old: kml.Attr{Mode: 0o644, Mtime: 1, UID: 3}}},
		{[]*kml.Record{
			{Op: kml.OpSetxattr, OID: 7, Name: "a", Value: []byte("1")},
			{Op: kml.OpSetxattr, OID: 7, Name: "a", Value: []byte("2"), HadOld: true, OldValue: []byte("1")},
		}, &kml.Record{Op: kml.OpSetxattr, OID: 7, Name: "a", Value: []byte("2")}},
		{[]*kml.Record{
			{Op: kml.OpRemovexattr, OID: 7, Name: "a", HadOld: true, OldValue: []byte("0")},
			{Op: kml.OpSetxattr, OID: 7, Name: "a", Value: []byte("2")},
		}, &kml.Record{Op: kml.OpSetxattr, OID: 7, Name: "a", Value: []byte("2"), HadOld: true, OldValue: []byte("0")}},
		{[]*kml.Record{
			{Op: kml.OpCreate, OID: 7, Parent: 1, Name: "t"},
			{Op: kml.OpRename, OID: 7, Parent: 1, Name: "t", NewParent: 1, NewName: "f", Victim: &kml.Victim{OID: 3}, VictimBase: base, Flags: kml.FlagGone},
			{Op: kml.OpRename, OID: 8, Parent: 1, Name: "u", NewParent: 1, NewName: "f", Victim: &kml.Victim{OID: 7}, VictimBase: kml.Base{Seq: 4}},
		}, &kml.Record{Op: kml.OpRename, OID: 8, Parent: 1, Name: "u", NewParent: 1, NewName: "f", Victim: &kml.Victim{OID: 3}, VictimBase: base, Flags: kml.FlagGone}},
	} {
		was := fmt.Sprintf("%+v", c.rs)
		out := kml.Optimize(c.rs, kml.OptimizeOptions{})
		var left []*kml.Record
		for _, k := range out {
			if k.Rec != nil {
				left = append(left, k.Rec)
			}
		}
		if diff := cmp.Diff([]*kml.Record{c.want}, left); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.want.Op, diff)
		}
		if fmt.Sprintf("%+v", c.rs) != was {
			t.Errorf("%s: the records were written to", c.want.Op)
		}
	}
}

// parted is two hosts that parted: what was made at two, and what the master has
// meanwhile.
type parted struct {
	m   *conflicttest.Master
	two *conflicttest.Client
}

// part makes the same hosts for the same seed.
func part(t *testing.T, seed uint64) parted {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 0))
	u := &conflicttest.User{Rand: rnd, Wanted: map[string]bool{}}
	act := func(c *conflicttest.Client, n int) {
		for range n {
			if _, err := u.Act(c); err != nil {
				t.Fatal(err)
			}
		}
	}
	m := conflicttest.NewMaster()
	one := m.NewClient("one", 1)
	act(one, 20)
	if err := one.Sync(); err != nil {
		t.Fatal(err)
	}
	two := m.NewClient("two", 2)
	act(one, rnd.IntN(12))
	u.Salt = 1 // a value between that both sides set is agreement without Optimize only
	act(two, 5+rnd.IntN(30))
	if err := one.Sync(); err != nil {
		t.Fatal(err)
	}
	return parted{m, two}
}

// place is what a conflict is about, whatever time a conflict name has in it.
func place(l conflict.Loss) string {
	base, ext := conflict.SplitCopy(l.Name.Name)
	return fmt.Sprint(l.Name.Parent, base, ext)
}

// TestOptimizeRandom: with what is left of a random log comes the same tree, the
// master takes it, and there is no conflict at a name that would not be without.
func TestOptimizeRandom(t *testing.T) {
	rnd := testutil.Rand(t)
	rounds := 1500
	if testutil.Long() {
		rounds = 300000
	}
	saved, all, tangled := 0, 0, 0
	for range rounds {
		seed, file := rnd.Uint64(), rnd.IntN(2) == 0
		plain, less := part(t, seed), part(t, seed)
		o := kml.OptimizeOptions{}
		if file {
			o.File = func(oid kml.OID) bool { return !less.two.IsDir(oid) }
		}
		was := records(less.two.Local)
		less.two.Local = optimized(less.two.Local, o)
		all += len(was)
		saved += len(was) - len(less.two.Local)
		fail := func(format string, args ...any) {
			var b strings.Builder
			for _, r := range was {
				fmt.Fprintf(&b, "\t%s\n", kml.AppendText(nil, r))
			}
			b.WriteString("came to\n")
			for _, k := range less.two.Local {
				fmt.Fprintf(&b, "\t%s\n", kml.AppendText(nil, k.Rec))
			}
			t.Fatalf("seed %d, types known %v: %s\n%s", seed, file, fmt.Sprintf(format, args...), b.String())
		}
		if again := optimized(less.two.Local, o); len(again) != len(less.two.Local) {
			fail("optimised again it has %d records", len(again))
		}
		// On the tree it was made on.
		tree, err := less.two.Replay(less.two.Local)
		if err != nil {
			fail("%v", err)
		}
		if want := plain.two.View.String(); tree != want {
			fail("%s, must be %s", tree, want)
		}
		// On the tree that the master has by now.
		if err := plain.two.Sync(); err != nil {
			t.Fatalf("seed %d: the plain log: %v", seed, err)
		}
		if err := less.two.Sync(); err != nil {
			fail("%v", err)
		}
		known := map[string]bool{}
		for _, l := range plain.two.Losses {
			known[place(l)], known[fmt.Sprint(l.Rec.OID)] = true, true
		}
		// Where records were dropped because the master's side had been there first,
		// or both did the same, what follows meets another tree in the two runs.
		rows := plain.two.Rows
		if rows[conflict.RowMoved]+rows[conflict.RowLost]+rows[conflict.RowSame]+rows[conflict.RowFolder]+rows[conflict.RowGone] > 0 {
			tangled++
			continue
		}
		for _, l := range less.two.Losses {
			if !known[place(l)] && !known[fmt.Sprint(l.Rec.OID)] {
				fail("a new conflict: %s at %v", l.Row, l.Name)
			}
		}
	}
	if tangled*2 > rounds {
		t.Errorf("tangled in %d of %d", tangled, rounds)
	}
	if saved*10 < all {
		t.Errorf("%d of %d records saved", saved, all)
	}
}

func BenchmarkOptimize(b *testing.B) {
	// An untar, and an editor that saves one file again and again.
	var rs []*kml.Record
	for i := range 20000 {
		oid := kml.MakeOID(2, uint64(i+10))
		rs = append(rs, &kml.Record{Op: kml.OpCreate, OID: oid, Parent: kml.RootOID, Name: fmt.Sprint("t", i)},
			&kml.Record{Op: kml.OpStore, OID: oid}, &kml.Record{Op: kml.OpSetattr, OID: oid, Mask: kml.MaskMode, Attr: kml.Attr{Mode: 1}},
			&kml.Record{Op: kml.OpSetattr, OID: oid, Mask: kml.MaskMtime})
		if i%2 == 0 {
			rs = append(rs, &kml.Record{Op: kml.OpRename, OID: oid, Parent: kml.RootOID, Name: fmt.Sprint("t", i), NewParent: kml.RootOID, NewName: "f"})
			if i > 0 {
				rs[len(rs)-1].Victim = &kml.Victim{OID: kml.MakeOID(2, uint64(i+8))}
			}
		}
	}
	b.ReportAllocs()
	b.ReportMetric(float64(len(rs)), "records")
	for b.Loop() {
		kml.Optimize(rs, kml.OptimizeOptions{})
	}
}
