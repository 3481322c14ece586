package cachefs

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml/tree"
)

// runReplica keeps a replica of addr until the test, or stop, ends it.
func runReplica(t *testing.T, o ReplicaOptions) (r *Replica, stop func()) {
	t.Helper()
	o.Dead, o.Retry = 20*time.Second, 50*time.Millisecond
	r, err := OpenReplica(t.Context(), o)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx, false) }()
	ended := false
	stop = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return r, stop
}

// equalTo waits until a replica is the equal of its master as that is now.
func equalTo(t *testing.T, r *Replica, m *testMaster) {
	t.Helper()
	ctx := ctxOf(t)
	for {
		end := m.tree.Log().End()
		must(t, r.WaitEqual(ctx))
		if r.Status().Position >= end {
			return
		}
		r.mu.Lock()
		changed := r.changed
		r.mu.Unlock()
		if r.Status().Position >= end {
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		}
	}
}

func randomBytes(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		v := rng.Uint64()
		for k := range 8 {
			b[i+k] = byte(v >> (8 * k))
		}
	}
	return b
}

// through writes to a file of the master through its tree, as a mount does.
func (m *testMaster) through(path string, b []byte, off int64) {
	m.t.Helper()
	ctx := context.Background()
	a, err := m.tree.Lookup(ctx, nil, 1, path)
	must(m.t, err)
	h, err := m.tree.Open(ctx, nil, a.OID, unix.O_WRONLY)
	must(m.t, err)
	_, err = h.WriteAt(ctx, b, off)
	must(m.t, err)
	must(m.t, h.Close())
}

// past writes to a file of the master behind its back.
func (m *testMaster) past(path string, b []byte, off int64) {
	m.t.Helper()
	f, err := os.OpenFile(filepath.Join(m.dir, path), os.O_WRONLY, 0)
	must(m.t, err)
	_, err = f.WriteAt(b, off)
	must(m.t, err)
	must(m.t, f.Close())
}

// TestDelta changes 4 KiB of large files, through the master's doors and behind
// its back, and counts what moves until the replica has it.
func TestDelta(t *testing.T) {
	rng := testutil.Rand(t)
	m := newMaster(t)
	p := newProxy(t, m.sock)
	sizes := map[string]int{"patched": tree.PatchMin + 5<<20 + 77, "copied": 9<<20 + 1}
	for name, size := range sizes {
		must(t, os.WriteFile(filepath.Join(m.dir, name), randomBytes(rng, size), 0o644))
	}
	must(t, m.tree.Scan(t.Context()))
	dir := t.TempDir()
	r, stop := runReplica(t, ReplicaOptions{Dir: dir, Addr: p.addr})
	equalTo(t, r, m)
	check := func(what, name string, most int64, change func()) {
		t.Helper()
		before := p.passed.Load()
		change()
		equalTo(t, r, m)
		moved := p.passed.Load() - before
		want, err := os.ReadFile(filepath.Join(m.dir, name))
		must(t, err)
		got, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		if !bytes.Equal(want, got) {
			t.Fatalf("%s, %s: differs from the master's", name, what)
		}
		t.Logf("%s, %s: %d bytes", name, what, moved)
		if moved > most {
			t.Errorf("%s, %s: %d bytes went over the link, more than %d", name, what, moved, most)
		}
	}
	for name, size := range sizes {
		piece := func() ([]byte, int64) { return randomBytes(rng, 4096), int64(rng.IntN(size - 4096)) }
		check("through a door", name, 64<<10, func() { b, off := piece(); m.through(name, b, off) })
		check("behind the back", name, 128<<10, func() { b, off := piece(); m.past(name, b, off); must(t, m.tree.Scan(t.Context())) })
		check("through a door after that", name, 64<<10, func() { b, off := piece(); m.through(name, b, off) })
		check("behind the back again", name, 128<<10, func() { b, off := piece(); m.past(name, b, off); must(t, m.tree.Scan(t.Context())) })
		check("longer", name, 256<<10, func() { m.past(name, randomBytes(rng, 100_000), int64(size)); must(t, m.tree.Scan(t.Context())) })
		check("shorter", name, 128<<10, func() {
			must(t, os.Truncate(filepath.Join(m.dir, name), int64(size-70_000)))
			must(t, m.tree.Scan(t.Context()))
		})
		check("touched", name, 128<<10, func() {
			now := time.Now()
			must(t, os.Chtimes(filepath.Join(m.dir, name), now, now))
			must(t, m.tree.Scan(t.Context()))
		})
	}
	if n := r.Status().Counts.Patched; n < 4 && !reflinks(t, dir) {
		t.Errorf("%d files were patched where they lie", n)
	}
	// What was changed while nobody followed is found by comparing.
	stop()
	m.past("patched", randomBytes(rng, 4096), 1<<20)
	m.past("copied", randomBytes(rng, 4096), 1<<20)
	must(t, m.tree.Scan(t.Context()))
	before := p.passed.Load()
	r, _ = runReplica(t, ReplicaOptions{Dir: dir, Addr: p.addr})
	check("after a rest", "patched", 256<<10, func() {})
	check("after a rest", "copied", 256<<10, func() {})
	if moved := p.passed.Load() - before; moved > 512<<10 {
		t.Errorf("%d bytes went over the link after a rest", moved)
	}
}

// reflinks reports whether files in dir can share blocks.
func reflinks(t *testing.T, dir string) bool {
	a, err := os.Create(filepath.Join(dir, ".mezzo", "a"))
	must(t, err)
	defer a.Close()
	b, err := os.Create(filepath.Join(dir, ".mezzo", "b"))
	must(t, err)
	defer b.Close()
	return unix.IoctlFileClone(int(b.Fd()), int(a.Fd())) == nil
}
