package tree

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
)

// TestTailIsLoggedAgain kills a master that commits nothing and lets its machine
// seem to have crashed: all it did is behind the last commit mark, and all of it
// is in the directory. What can be told to be whole keeps its oid and origin.
func TestTailIsLoggedAgain(t *testing.T) {
	rounds := 6
	if testutil.Long() {
		rounds = 200
	}
	rnd := testutil.Rand(t)
	var records, again, damaged int
	for range rounds {
		seed, n := rnd.Uint64(), 5+rnd.IntN(150)
		dir := t.TempDir()
		ok(t, Init(dir, Options{NoWatch: true}))
		if !killed(t, dir, seed, fmt.Sprintf("tree.append:%d", n)) {
			continue // it was done before
		}
		tail := readLog(t, dir)
		want := replayed(t, tail)

		tr, err := Open(dir, Options{NoWatch: true, Boot: bootOf(1)})
		if err != nil {
			t.Fatalf("seed %d, %d records: %v", seed, n, err)
		}
		checkTail(t, tr, tail, &records, &again)
		got := treeOIDs(t, tr)
		for name, oid := range want {
			if got[name] != oid {
				t.Errorf("%v %q is %v, was %v", name.Parent, name.Name, got[name], oid)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%d names, %d before", len(got), len(want))
		}
		damaged += len(tr.Damaged())
		ok(t, tr.Scan(ctx))
		checkAgrees(t, tr)
		checkReplay(t, tr)
		ok(t, tr.Close())
		if t.Failed() {
			t.Fatalf("seed %d, killed after %d records", seed, n)
		}
	}
	t.Logf("%d records behind the mark, %d logged again, %d files damaged", records, again, damaged)
	if again == 0 {
		t.Error("nothing was ever logged again")
	}
}

// killed runs a worker that commits nothing until it is killed at a point; false
// when it never came there.
func killed(t *testing.T, dir string, seed uint64, at string) bool {
	t.Helper()
	exe, err := os.Executable()
	ok(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), crashDir+"="+dir, crashSync+"=1h", fmt.Sprintf("%s=%d", crashSeed, seed), fault.Env+"="+at)
	out, err := cmd.CombinedOutput()
	if err != nil && !strings.Contains(err.Error(), "killed") {
		t.Fatalf("seed %d: %v: %s", seed, err, out)
	}
	return err != nil
}

func readLog(t *testing.T, dir string) (out []*kml.Record) {
	t.Helper()
	l, err := kml.Open(filepath.Join(dir, ExtDirName, "kml"), kml.Options{ReadOnly: true})
	ok(t, err)
	defer l.Close()
	rd, err := l.ReaderAfter(l.Durable())
	ok(t, err)
	defer rd.Close()
	for {
		r, err := rd.TryNext()
		if err == io.EOF {
			return out
		}
		ok(t, err)
		out = append(out, r)
	}
}

// replayed is which name holds which object after records on an empty tree.
func replayed(t *testing.T, rs []*kml.Record) map[Name]kml.OID {
	t.Helper()
	m := map[Name]kml.OID{}
	for _, r := range rs {
		switch r.Op {
		case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod, kml.OpLink:
			m[Name{r.Parent, r.Name}] = r.OID
		case kml.OpUnlink, kml.OpRmdir:
			delete(m, Name{r.Parent, r.Name})
		case kml.OpRename:
			delete(m, Name{r.Parent, r.Name})
			if r.Flags&kml.FlagExchange != 0 {
				m[Name{r.Parent, r.Name}] = r.Victim.OID
			}
			m[Name{r.NewParent, r.NewName}] = r.OID
		}
	}
	return m
}

// checkTail: every record about names stands in the new epoch under its origin,
// once; so does every store of a file that is not damaged.
func checkTail(t *testing.T, tr *Tree, tail []*kml.Record, all, again *int) {
	t.Helper()
	now := map[kml.Origin]*kml.Record{}
	for _, r := range records(t, tr) {
		if r.Pos.Epoch() < tr.log.Epoch() || r.Origin == (kml.Origin{}) {
			continue
		}
		if now[r.Origin] != nil {
			t.Errorf("origin %v stands twice", r.Origin)
		}
		now[r.Origin] = r
	}
	for _, r := range tail {
		if r.Op == kml.OpMark && r.Mark != kml.MarkSite {
			continue
		}
		*all++
		n := now[r.Origin]
		switch {
		case n != nil:
			*again++
			if n.OID != r.OID || n.Op != r.Op || n.Name != r.Name {
				t.Errorf("%s\ncame back as %s", kml.AppendText(nil, r), kml.AppendText(nil, n))
			}
		case r.Op == kml.OpStore:
			_, bad := tr.damage.has(r.OID)
			o, err := tr.index.Get(r.OID)
			if !bad && err == nil && o.Attr.Mode&unix.S_IFMT == unix.S_IFREG {
				t.Errorf("of a file that is whole a store is missing: %s", kml.AppendText(nil, r))
			}
		default:
			t.Errorf("not logged again: %s", kml.AppendText(nil, r))
		}
	}
}
