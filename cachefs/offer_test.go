package cachefs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mezzofs/mezzo/internal/testutil/disk"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

func bootOf(n int) tree.Boot { return tree.Boot{ID: fmt.Sprintf("boot-%d", n), Since: time.Now()} }

// crashingMaster is a master whose machine can crash: its disk is one of which
// what was not synced is lost.
type crashingMaster struct {
	*testMaster
	d    *disk.Disk
	boot int
}

func newCrashingMaster(t *testing.T, kind string) *crashingMaster {
	t.Helper()
	d := disk.New(t, kind)
	dir := filepath.Join(d.Mnt, "fs")
	must(t, os.Mkdir(dir, 0o755))
	m := newMasterWith(t, dir, tree.Options{NoWatch: true, SyncEvery: time.Hour, Boot: bootOf(1)})
	t.Cleanup(func() { m.stop() }) // before the disk is unmounted
	return &crashingMaster{m, d, 1}
}

// cut takes the machine down; up starts it again.
func (m *crashingMaster) cut(t *testing.T) {
	t.Helper()
	// Another program's fsync takes what changed in folders along, not the bytes.
	other, err := os.Create(filepath.Join(m.d.Mnt, "other"))
	must(t, err)
	must(t, other.Sync())
	must(t, other.Close())
	m.d.CutPower(t)
	m.gone = true
	m.stop()
	m.d.Unmount(t)
	m.d.Mount(t)
}

func (m *crashingMaster) up(t *testing.T) {
	t.Helper()
	m.boot++
	m.gone, m.opt.Boot = false, bootOf(m.boot)
	m.start()
}

// follower is a replica that runs.
type follower struct {
	*Replica
	dir string
}

func newFollower(t *testing.T, addr string) *follower {
	t.Helper()
	dir := t.TempDir()
	r, err := OpenReplica(ctxOf(t), ReplicaOptions{Dir: dir, Addr: addr, Dead: 20 * time.Second, Retry: 50 * time.Millisecond, Inline: 1000})
	must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.Run(ctx, false); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		stop()
		wg.Wait()
	})
	return &follower{r, dir}
}

func (f *follower) read(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(f.dir, name))
	return string(b), err
}

// TestDamagedFilesComeBack: what a crash of the master's machine emptied comes
// back from a cache and from a replica: one file from who has just the version
// that is missing, one from who had followed to a version that the crash took
// altogether. What nobody has stays damaged.
func TestDamagedFilesComeBack(t *testing.T) {
	old := func(name string) string { return strings.Repeat("old "+name+"\n", 5000) }
	later := func(name string) string { return strings.Repeat("later "+name+"\n", 4000) }
	for _, from := range []string{"cache", "reopened cache", "replica"} {
		t.Run(from, func(t *testing.T) {
			m := newCrashingMaster(t, "ext4")
			ctx := ctxOf(t)
			for _, n := range []string{"exact", "newer", "nobody"} {
				must(t, writeFile(ctx, m.tree, n, old(n)))
			}
			must(t, m.tree.Commit(ctx))
			p := newProxy(t, m.sock)
			var read func(name string) (string, error)
			var c *Client
			dir := t.TempDir()
			if from == "replica" {
				read = newFollower(t, p.addr).read
			} else {
				c = openClient(t, dir, p.addr)
				read = func(n string) (string, error) { return readFile(ctx, c, n) }
			}
			same(t, old("exact"), func() (string, error) { return read("exact") })
			must(t, writeFile(ctx, m.tree, "newer", later("newer")))
			same(t, later("newer"), func() (string, error) { return read("newer") })
			p.cut(true)
			must(t, writeFile(ctx, m.tree, "exact", later("exact")))
			if from != "replica" { // which has all
				must(t, writeFile(ctx, m.tree, "nobody", later("nobody")))
			}
			if from == "reopened cache" {
				must(t, c.Close(ctx))
				c = openClient(t, dir, p.addr)
			}
			m.cut(t)
			for _, n := range []string{"exact", "newer"} {
				if st, err := os.Stat(filepath.Join(m.dir, n)); err != nil || st.Size() != 0 {
					t.Fatalf("the crash did not empty %s: %v, %v", n, st, err)
				}
			}
			m.up(t)
			must(t, m.tree.Scan(ctx))
			p.open()
			for n, want := range map[string]string{"exact": old("exact"), "newer": later("newer")} {
				same(t, want, func() (string, error) { return readFile(ctx, m.tree, n) })
				same(t, want, func() (string, error) { return read(n) })
			}
			if list := m.tree.Damaged(); from != "replica" && (len(list) != 1 || list[0].Name != `"nobody"`) {
				t.Errorf("damaged: %v, want nobody alone", list)
			}
			for _, r := range logOf(t, m.tree) {
				if r.Op == kml.OpStore && r.Flags&kml.FlagForeign != 0 {
					t.Errorf("the damage was logged as an edit: %s", kml.AppendText(nil, r))
				}
			}
		})
	}
}

// TestFarBehind: a client that the log no longer reaches back to compares
// versions: what it has is not fetched again, and what changed is.
func TestFarBehind(t *testing.T) {
	m := newMaster(t)
	ctx := ctxOf(t)
	p := newProxy(t, m.sock)
	dir := t.TempDir()
	o := optionsOf(dir, p.addr)
	o.WholeMax = 4 << 20
	c, err := clientWith(t, o)
	must(t, err)
	body := func(i, v int) string { return strings.Repeat(fmt.Sprintf("%3d %3d\n", i, v), 64<<10) }
	const files = 8
	for i := range files {
		must(t, writeFile(ctx, m.tree, fmt.Sprint(i), body(i, 0)))
		same(t, body(i, 0), func() (string, error) { return readFile(ctx, c, fmt.Sprint(i)) })
	}
	must(t, writeFile(ctx, c, "own", "sent"))
	must(t, c.Sync(ctx))
	for _, reopen := range []bool{false, true} {
		p.cut(true)
		must(t, writeFile(ctx, c, "own", fmt.Sprintf("not sent yet, %v", reopen)))
		v := 1
		if reopen {
			v = 2
			must(t, c.Close(ctx))
		}
		must(t, writeFile(ctx, m.tree, "0", body(0, v)))
		must(t, m.tree.Rename(ctx, nil, kml.RootOID, "1", kml.RootOID, "one", 0))
		fallOff(t, m.tree)
		p.open()
		before := p.fetched()
		if reopen {
			c, err = clientWith(t, o)
			must(t, err)
		}
		must(t, c.WaitState(ctx, func(s State) bool { return s == Connected }))
		must(t, c.Sync(ctx))
		for i := range files {
			name, want := fmt.Sprint(i), body(i, 0)
			switch i {
			case 0:
				want = body(0, v)
			case 1:
				name = "one"
			}
			if got, err := readFile(ctx, c, name); err != nil || got != want {
				t.Errorf("%s: %d bytes, %v", name, len(got), err)
			}
		}
		if n := p.fetched() - before; n > 1<<20 {
			t.Errorf("%d bytes were fetched, one file has %d", n, len(body(0, 0)))
		}
		equal(t, m.tree, c)
		must(t, m.tree.Rename(ctx, nil, kml.RootOID, "one", kml.RootOID, "1", 0))
		must(t, c.Sync(ctx))
	}
}

// fallOff lets the log begin behind what it has now.
func fallOff(t *testing.T, tr *tree.Tree) {
	t.Helper()
	note := strings.Repeat("note ", 24<<10)
	for n := len(tr.Log().Segments()); len(tr.Log().Segments()) == n; {
		must(t, tr.Log().Append(&kml.Record{Op: kml.OpMark, Mark: kml.MarkNote, Name: note}))
	}
	end := tr.Log().End()
	must(t, writeFile(ctxOf(t), tr, "after", "the end")) // the index moves on with it
	_, err := tr.Truncate(ctxOf(t), 0, 0)
	must(t, err)
	if tr.Log().First() < end {
		t.Fatalf("the log begins at %v, not at %v", tr.Log().First(), end)
	}
}

// logOf is all records of a tree's log.
func logOf(t *testing.T, tr *tree.Tree) (rs []*kml.Record) {
	t.Helper()
	r, err := tr.Log().ReaderAfter(0)
	must(t, err)
	defer r.Close()
	for {
		rec, err := r.TryNext()
		if err != nil {
			return rs
		}
		rs = append(rs, rec)
	}
}
