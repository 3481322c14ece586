package tree

import (
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

func TestSyncModes(t *testing.T) {
	dir := t.TempDir()
	ok(t, Init(dir, Options{}))
	// change makes every kind of change and calls after behind each.
	change := func(tr *Tree, name string, after func(what string)) {
		d := must[Attr](t)(tr.Mkdir(ctx, nil, kml.RootOID, name, 0o755))
		after("mkdir")
		a := put(t, tr, d.OID, "f", "x")
		after("store")
		must[Attr](t)(tr.Link(ctx, nil, a.OID, d.OID, "g"))
		after("link")
		ok(t, tr.Rename(ctx, nil, d.OID, "g", d.OID, "h", 0))
		after("rename")
		must[Attr](t)(tr.Setattr(ctx, nil, a.OID, nil, SetAttr{Mask: SetMode, Mode: 0o600}))
		after("setattr")
		ok(t, tr.Setxattr(ctx, nil, a.OID, "user.a", []byte("1"), 0))
		after("setxattr")
		ok(t, tr.Unlink(ctx, nil, d.OID, "h"))
		after("unlink")
	}

	tr, err := Open(dir, Options{NoWatch: true, Sync: SyncAlways})
	ok(t, err)
	change(tr, "always", func(what string) {
		if tr.Durable() < lastRecord(t, tr) {
			t.Errorf("always: %s was answered before it was durable", what)
		}
	})
	var wg sync.WaitGroup
	before := tr.log.Stats()
	for i := range 8 {
		wg.Go(func() {
			for j := range 4 {
				if _, err := tr.Mkdir(ctx, nil, kml.RootOID, string(rune('a'+i))+string(rune('0'+j)), 0o755); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := tr.log.Stats().Commits - before.Commits; n >= 32 {
		t.Errorf("32 changes of 8 callers made %d commits: none was shared", n)
	}
	ok(t, tr.Close())

	tr, err = Open(dir, Options{NoWatch: true, Sync: SyncNever, SyncEvery: time.Millisecond})
	ok(t, err)
	start := tr.Durable()
	var h Handle
	change(tr, "never", func(string) {
		if tr.Durable() != start {
			t.Error("never: somebody made a commit")
		}
	})
	_, h, err = tr.Create(ctx, nil, kml.RootOID, "synced", unix.O_RDWR, 0o644)
	ok(t, err)
	must[int](t)(h.WriteAt(ctx, []byte("x"), 0))
	ok(t, h.Fsync(ctx, false))
	if tr.Durable() < lastRecord(t, tr) {
		t.Error("never: an fsync left something behind")
	}
	ok(t, h.Close())
	ok(t, tr.Close())

	tr, err = Open(dir, Options{NoWatch: true, SyncEvery: time.Millisecond})
	ok(t, err)
	put(t, tr, kml.RootOID, "interval", "x")
	waitFor(t, tr, "a commit", func() bool { return tr.Durable() >= lastRecord(t, tr) })
	ok(t, tr.Close())
}

// lastRecord is the position of the last record that is no mark.
func lastRecord(t *testing.T, tr *Tree) kml.Position {
	t.Helper()
	var last kml.Position
	for _, r := range records(t, tr) {
		if r.Op != kml.OpMark {
			last = r.Pos
		}
	}
	return last
}

// BenchmarkSync is a create under each mode, by one caller and by sixteen.
func BenchmarkSync(b *testing.B) {
	for _, m := range []struct {
		name string
		mode SyncMode
	}{{"never", SyncNever}, {"interval", SyncInterval}, {"always", SyncAlways}} {
		for _, callers := range []int{1, 16} {
			b.Run(m.name+"/"+string(rune('0'+callers/10))+string(rune('0'+callers%10)), func(b *testing.B) {
				dir := b.TempDir()
				if err := Init(dir, Options{}); err != nil {
					b.Fatal(err)
				}
				tr, err := Open(dir, Options{NoWatch: true, Sync: m.mode})
				if err != nil {
					b.Fatal(err)
				}
				defer tr.Close()
				b.SetParallelism(callers)
				var mu sync.Mutex
				n := 0
				b.ResetTimer()
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						mu.Lock()
						n++
						name := "f" + time.Duration(n).String()
						mu.Unlock()
						_, h, err := tr.Create(ctx, nil, kml.RootOID, name, unix.O_RDWR, 0o644)
						if err != nil {
							b.Error(err)
							return
						}
						h.Close()
					}
				})
			})
		}
	}
}
