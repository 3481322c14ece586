package tree

import (
	"strings"
	"testing"
	"time"

	"github.com/mezzofs/mezzo/kml"
)

// fillSegment appends notes until the log has begun another segment.
func fillSegment(t *testing.T, tr *Tree) {
	t.Helper()
	note := strings.Repeat("note ", 24<<10)
	for n := len(tr.log.Segments()); len(tr.log.Segments()) == n; {
		var rs []*kml.Record
		for range 16 {
			rs = append(rs, &kml.Record{Op: kml.OpMark, Mark: kml.MarkNote, Name: note})
		}
		ok(t, tr.log.Append(rs...))
	}
}

// TestRetention drops the beginning of a log, and goes on without it.
func TestRetention(t *testing.T) {
	dir := t.TempDir()
	ok(t, Init(dir, Options{}))
	o := Options{NoWatch: true, SyncEvery: time.Hour, RetainSize: 1, RetainAge: 1, Boot: bootOf(1)}
	tr, err := Open(dir, o)
	ok(t, err)
	d := must[Attr](t)(tr.Mkdir(ctx, nil, kml.RootOID, "before", 0o755))
	fillSegment(t, tr)
	put(t, tr, d.OID, "f", "contents")
	if n, err := tr.retain(); n != 0 || err != nil {
		t.Fatalf("%d segments went that were not durable: %v", n, err)
	}
	ok(t, tr.Commit(ctx))
	if n, err := tr.retain(); n != 1 || err != nil || tr.log.Start() == 0 {
		t.Fatalf("%d segments went: %v", n, err)
	}
	if c := tr.index.Flushed(); c <= tr.log.Start() {
		t.Fatalf("the index is at %s, the log begins after %s", c, tr.log.Start())
	}

	ok(t, tr.Close())

	o.Boot = bootOf(2)
	tr, err = Open(dir, o)
	ok(t, err)
	for _, name := range []string{"f"} {
		must[Attr](t)(tr.Lookup(ctx, nil, d.OID, name))
	}
	put(t, tr, d.OID, "h", "after")
	ok(t, tr.Commit(ctx))
	ok(t, tr.Close())
	if tr.log.Start() == 0 {
		t.Fatal("the log is whole again")
	}
}
