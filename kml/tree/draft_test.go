package tree

import (
	"maps"
	"path/filepath"
	"reflect"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
)

// TestDraft checks that a draft says the same and leaves the same behind, however
// much is in it.
func TestDraft(t *testing.T) {
	rnd := testutil.Rand(t)
	for _, n := range []int{1, 5, fewMost, fewMost + 1, 10 * fewMost} {
		var d draft
		d.empty(7, 8)
		want := newOverlay(9)
		for range 3 * n {
			k := rnd.IntN(n)
			oid, name := kml.OID(k+2), Name{kml.OID(k % 3), strconv.Itoa(k)}
			switch rnd.IntN(6) {
			case 0:
				o := &Object{OID: oid}
				d.setObject(oid, o)
				want.objs[oid] = o
			case 1:
				v := nameVal{oid, kml.Position(rnd.IntN(3))}
				d.setName(name, v)
				want.setName(name, v)
			case 2:
				there := rnd.IntN(2) == 0
				d.setLink(oid, name, there)
				want.setLink(oid, name, there)
			case 3:
				d.setIno(uint64(k), oid)
				want.inos[uint64(k)] = oid
			case 4:
				d.setOrigin(kml.Origin{Seq: uint64(k)}, kml.Position(k))
				want.origins[kml.Origin{Seq: uint64(k)}] = kml.Position(k)
			case 5:
				d.setSite(kml.SiteID(k), siteState{lastSeq: uint64(k)})
				want.sites[kml.SiteID(k)] = siteState{lastSeq: uint64(k)}
			}
			if n > fewMost && rnd.IntN(20) == 0 {
				d.full()
			}
		}
		d.cursor = 9
		for k := range n {
			oid, name := kml.OID(k+2), Name{kml.OID(k % 3), strconv.Itoa(k)}
			o, ok1 := d.object(oid)
			v, ok2 := d.name(name)
			ino, ok3 := d.ino(uint64(k))
			p, ok4 := d.origin(kml.Origin{Seq: uint64(k)})
			st, ok5 := d.site(kml.SiteID(k))
			wo, is1 := want.objs[oid]
			wv, is2 := want.names[name.Parent][name.Name]
			wi, is3 := want.inos[uint64(k)]
			wp, is4 := want.origins[kml.Origin{Seq: uint64(k)}]
			ws, is5 := want.sites[kml.SiteID(k)]
			if o != wo || v != wv || ino != wi || p != wp || st != ws || ok1 != is1 || ok2 != is2 || ok3 != is3 || ok4 != is4 || ok5 != is5 {
				t.Fatalf("%d entries: %d is not what was set", n, k)
			}
		}
		got := newOverlay(0)
		d.lay(got)
		if !maps.Equal(got.objs, want.objs) || !reflect.DeepEqual(got.names, want.names) || !reflect.DeepEqual(got.links, want.links) ||
			!maps.Equal(got.inos, want.inos) || !maps.Equal(got.origins, want.origins) || !maps.Equal(got.sites, want.sites) || got.cursor != 9 || got.crc != 8 {
			t.Fatalf("%d entries: laid down as\n%+v, want\n%+v", n, got, want)
		}
		d.empty(1, 2)
		if _, ok := d.object(2); ok || d.much != nil || d.cursor != 1 {
			t.Fatalf("%d entries: not empty", n)
		}
	}
}

// TestRecent checks that what was used lately is kept, and not much more.
func TestRecent(t *testing.T) {
	var r recent[int, int]
	for i := range 4 * maxClean {
		r.put(i, i)
		if v, ok := r.get(0); !ok || v != 0 {
			t.Fatalf("forgotten after %d, used all the time", i)
		}
		if v, ok := r.get(i); !ok || v != i {
			t.Fatalf("%d: %d %v", i, v, ok)
		}
		if n := len(r.young) + len(r.old); n > maxClean {
			t.Fatalf("%d kept", n)
		}
	}
	if _, ok := r.get(1); ok {
		t.Fatal("kept for ever")
	}
	r.put(5, 1)
	r.put(5, 2)
	r.remove(5)
	if _, ok := r.get(5); ok {
		t.Fatal("removed and there")
	}
}

// TestLookupsWhileFlushing checks that what is looked up in the file, through
// transactions that are kept, is of its present state, and that none is kept
// while the file is written.
func TestLookupsWhileFlushing(t *testing.T) {
	x := must[*Index](t)(OpenIndex(filepath.Join(t.TempDir(), "index.db"), IndexOptions{FlushEvery: time.Hour}))
	const objects = 50
	var round atomic.Uint64
	put := func(n uint64) {
		ok(t, x.Update(func(b *Batch) error {
			for i := range objects {
				oid := kml.OID(i + 2)
				b.SetName(Name{kml.RootOID, strconv.Itoa(i)}, oid, kml.Position(n))
				if err := b.Put(&Object{OID: oid, Attr: kml.Attr{Size: n}, Ino: uint64(i) + 1}); err != nil {
					return err
				}
			}
			b.SetCursor(kml.Position(n))
			return nil
		}))
	}
	put(1)
	ok(t, x.Flush())
	round.Store(1)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := g; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				x.mu.Lock()
				x.clean.objs, x.clean.names = recent[kml.OID, *Object]{}, recent[Name, nameVal]{}
				x.mu.Unlock()
				least := round.Load()
				oid, _, there := x.Child(kml.RootOID, strconv.Itoa(i%objects))
				if !there {
					t.Errorf("name %d is gone", i%objects)
					return
				}
				if o, err := x.Get(oid); err != nil || o.Attr.Size < least {
					t.Errorf("object %v of round %d: %+v %v", oid, least, o, err)
					return
				}
				if has, there := x.ByIno(uint64(i%objects) + 1); !there || has != oid {
					t.Errorf("inode %d: %v %v", i%objects+1, has, there)
					return
				}
			}
		})
	}
	for n := uint64(2); n < 30; n++ {
		put(n)
		ok(t, x.Flush())
		round.Store(n)
	}
	close(stop)
	wg.Wait()
	x.readers.mu.Lock()
	kept := len(x.readers.idle)
	x.readers.mu.Unlock()
	if open := x.db.Stats().OpenTxN; open != kept || kept == 0 || kept > maxIdle {
		t.Errorf("%d transactions are open, %d are kept", open, kept)
	}
	ok(t, x.Close())
}
