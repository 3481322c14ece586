package tree

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
)

// copyFileset copies a folder as a backup would.
func copyFileset(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	return to
}

func treeOIDs(t *testing.T, tr *Tree) map[Name]kml.OID {
	t.Helper()
	m := map[Name]kml.OID{}
	collectNames(t, tr, kml.RootOID, m)
	return m
}

// TestCopiedFileset opens a copy beside its original and lets both go on: the
// same objects, another history.
func TestCopiedFileset(t *testing.T) {
	for _, c := range []struct {
		name    string
		running bool // copied while a process has the original open
	}{{"at rest", false}, {"running", true}} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			ok(t, os.MkdirAll(filepath.Join(dir, "d", "e"), 0o755))
			ok(t, os.WriteFile(filepath.Join(dir, "d", "e", "f"), []byte("f"), 0o644))
			ok(t, os.WriteFile(filepath.Join(dir, "g"), []byte("g"), 0o644))
			ok(t, os.Link(filepath.Join(dir, "g"), filepath.Join(dir, "d", "h")))
			ok(t, os.Symlink("g", filepath.Join(dir, "s")))
			ok(t, Init(dir, Options{NoWatch: true}))
			tr, err := Open(dir, Options{NoWatch: true})
			ok(t, err)
			put(t, tr, kml.RootOID, "x", "before")
			if !c.running {
				ok(t, tr.Close())
			}
			twin := copyFileset(t, dir)
			if !c.running {
				tr, err = Open(dir, Options{NoWatch: true})
				ok(t, err)
			}
			tw, err := Open(twin, Options{NoWatch: true})
			ok(t, err)
			defer func() { ok(t, tr.Close()) }()
			if tw.log.Epoch() != tr.log.Epoch()+1 || tw.log.EpochID() == tr.log.EpochID() {
				t.Errorf("epochs %d and %d", tw.log.Epoch(), tr.log.Epoch())
			}
			if a, b := treeOIDs(t, tr), treeOIDs(t, tw); len(a) != len(b) {
				t.Errorf("%d names and %d in the copy", len(a), len(b))
			} else {
				for n, oid := range a {
					if b[n] != oid {
						t.Errorf("%v is %v, in the copy %v", n, oid, b[n])
					}
				}
			}
			end := tw.log.End()
			ok(t, tw.Scan(ctx))
			for _, r := range records(t, tw) { // times of folders apart, which cp sets
				if r.Pos > end && r.Op != kml.OpSetattr {
					t.Errorf("the copy journaled %s", kml.AppendText(nil, r))
				}
			}
			both := map[kml.OID]bool{}
			for i := range 3 {
				name := string(rune('p' + i))
				a, b := put(t, tr, kml.RootOID, name, "a"), put(t, tw, kml.RootOID, name, "b")
				if both[a.OID] || both[b.OID] || a.OID == b.OID {
					t.Errorf("%v and %v were minted twice", a.OID, b.OID)
				}
				both[a.OID], both[b.OID] = true, true
			}
			checkAgrees(t, tw)
			checkReplay(t, tw)
			checkAgrees(t, tr)
			apart(t, tr, tw)
			// It is the fileset of its folder from now on.
			epoch := tw.log.Epoch()
			ok(t, tw.Close())
			tw, err = Open(twin, Options{NoWatch: true})
			ok(t, err)
			if tw.log.Epoch() != epoch || tw.state.Copied {
				t.Errorf("opened again it is epoch %d, was %d", tw.log.Epoch(), epoch)
			}
			checkAgrees(t, tw)
			ok(t, tw.Close())
		})
	}
}

// apart: two histories have another CRC at the first recno they do not share.
func apart(t *testing.T, a, b *Tree) {
	t.Helper()
	ra, rb := records(t, a), records(t, b)
	n := min(len(ra), len(rb))
	for i := range n {
		x, err := a.log.CRCAt(ra[i].Pos)
		ok(t, err)
		y, err := b.log.CRCAt(rb[i].Pos)
		ok(t, err)
		if ra[i].Pos.Recno() != rb[i].Pos.Recno() {
			t.Fatalf("record %d is %v and %v", i, ra[i].Pos, rb[i].Pos)
		}
		if x != y {
			return
		}
	}
	t.Error("the logs cannot be told apart")
}

// TestCutTakenUpAgain: an opener that is killed while it settles history leaves
// what the next one finishes.
func TestCutTakenUpAgain(t *testing.T) {
	for _, p := range []string{"tree.evidence", "kml.cut.marked", "kml.cut.removed", "tree.cut", "tree.weighed", "tree.settled"} {
		t.Run(p, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			ok(t, os.WriteFile(filepath.Join(dir, "g"), []byte("g"), 0o644))
			ok(t, Init(dir, Options{NoWatch: true}))
			twin := copyFileset(t, dir)
			for range 2 {
				opener(t, twin, p)
			}
			tr, err := Open(twin, Options{NoWatch: true})
			ok(t, err)
			checkAgrees(t, tr)
			checkReplay(t, tr)
			if b, err := readObject(t, tr, must[Attr](t)(tr.Lookup(ctx, nil, kml.RootOID, "g")).OID); err != nil || string(b) != "g" {
				t.Errorf("g: %q %v", b, err)
			}
			if tr.state.Copied != (p != "tree.settled") {
				t.Error("the fault point is not where it was")
			}
			ok(t, tr.Close())
		})
	}
}

// opener is a process that opens the fileset and is killed at a point.
func opener(t *testing.T, dir, at string) {
	t.Helper()
	exe, err := os.Executable()
	ok(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), crashDir+"="+dir, fault.Env+"="+at)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("not killed at %s: %v: %s", at, err, out)
	}
}
