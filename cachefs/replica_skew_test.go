package cachefs

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A replica whose clock is days off its master's is equal all the same, with the
// master's times, and tries again what failed.
func TestReplicaClocksApart(t *testing.T) {
	m := newMaster(t)
	for _, days := range []int{-3, 3} {
		off := time.Duration(days) * 24 * time.Hour
		dir := filepath.Join(t.TempDir(), "copy")
		r, stop := runReplica(t, ReplicaOptions{Dir: dir, Addr: "unix!" + m.sock, Now: func() time.Time { return time.Now().Add(off) }})
		equalTo(t, r, m)
		large := bytes.Repeat([]byte("large "), 100_000)
		must(t, os.WriteFile(filepath.Join(m.dir, "small"), []byte("small"), 0o644))
		must(t, os.WriteFile(filepath.Join(m.dir, "large"), large, 0o644))
		must(t, m.tree.Scan(ctxOf(t)))
		equalTo(t, r, m)
		for _, n := range []string{"small", "large"} {
			a, err := os.Stat(filepath.Join(m.dir, n))
			must(t, err)
			b, err := os.Stat(filepath.Join(dir, n))
			must(t, err)
			if !a.ModTime().Equal(b.ModTime()) || a.Size() != b.Size() {
				t.Errorf("%s: %v %d at the master, %v %d here", n, a.ModTime(), a.Size(), b.ModTime(), b.Size())
			}
		}
		if s := r.Status(); len(s.Troubles) > 0 || s.Counts.Aside > 0 {
			t.Errorf("%+v", s)
		}
		stop()
	}
}
