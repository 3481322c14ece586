package tree

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
)

// entriesOf are all entries of an index's file.
func entriesOf(t *testing.T, x *Index) map[string]string {
	t.Helper()
	m := map[string]string{}
	ok(t, x.view(func(tx *bolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bolt.Bucket) error {
			return b.ForEach(func(k, v []byte) error {
				m[string(name)+"/"+string(k)] = string(v)
				return nil
			})
		})
	}))
	return m
}

func chainOf(kml.Position) (uint32, error) { return 77, nil }

// someIndex is an index with n files in a few folders.
func someIndex(t testing.TB, n int) (*Index, string) {
	t.Helper()
	x, path := newIndex(t, IndexOptions{})
	err := x.Update(func(b *Batch) error {
		for i := range n {
			oid, parent := kml.MakeOID(1, uint64(i+2)), kml.MakeOID(1, uint64(i%7))
			name := Name{parent, fmt.Sprintf("a-file-with-a-name-%d", i)}
			o := &Object{OID: oid, Attr: kml.Attr{Mode: 0o100644, Nlink: 1, Size: uint64(i)}, Version: kml.MakePosition(1, uint64(i+1)),
				Known: kml.MakePosition(1, uint64(i+1)), Parent: parent, Name: name.Name, Ino: uint64(i*7919 + 3), Handle: []byte{1, 2, 3, byte(i)}}
			if err := b.Put(o); err != nil {
				return err
			}
			b.SetName(name, oid, o.Known)
			b.SetApplied(kml.Origin{Site: 5, Seq: uint64(i + 1)}, o.Known, 0)
		}
		b.SetCursor(kml.MakePosition(1, uint64(n)))
		b.SetCursorCRC(5)
		return nil
	})
	if err == nil {
		err = x.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	return x, path
}

func TestCheckpointRoundTrip(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []int{0, 1, restoreBatch/4 + 1} {
		x, _ := someIndex(t, n)
		file := filepath.Join(dir, fmt.Sprint("checkpoint", n))
		var b bytes.Buffer
		of, size, err := x.dump(&b, [16]byte{9}, chainOf)
		ok(t, err)
		if size != int64(b.Len()) || of.cursor != x.Cursor() || of.chain != 77 || of.crc != x.CursorCRC() {
			t.Errorf("a checkpoint of %d bytes as of %+v: %d bytes", size, of, b.Len())
		}
		ok(t, os.WriteFile(file, b.Bytes(), 0o600))
		if again, _, err := readCheckpoint(file, true); err != nil || again != of {
			t.Errorf("read as of %+v: %v", again, err)
		}
		path := filepath.Join(dir, fmt.Sprint("index", n))
		ok(t, restoreIndex(path, file, false))
		y, err := OpenIndex(path, IndexOptions{})
		ok(t, err)
		want, got := entriesOf(t, x), entriesOf(t, y)
		if len(want) != len(got) {
			t.Errorf("%d entries, %d in the other", len(want), len(got))
		}
		for k, v := range want {
			if got[k] != v {
				t.Fatalf("%q is %q, was %q", k, got[k], v)
			}
		}
		if y.Cursor() != x.Cursor() || y.CursorCRC() != x.CursorCRC() {
			t.Error("the cursor is another")
		}
		ok(t, y.Close())
		ok(t, restoreIndex(path, file, true))
		y, err = OpenIndex(path, IndexOptions{})
		ok(t, err)
		if n > 0 {
			o, err := y.Get(kml.MakeOID(1, 2))
			ok(t, err)
			_, found := y.ByIno(3)
			if len(o.Handle) > 0 || o.Ino != 0 || found || o.Name == "" {
				t.Errorf("stripped it is %+v", o)
			}
		}
		ok(t, y.Close())
	}
}

// TestCheckpointDamage: no byte of a checkpoint can change, go, or stand
// elsewhere without being noticed.
func TestCheckpointDamage(t *testing.T) {
	x, _ := someIndex(t, 20000) // several blocks
	var b bytes.Buffer
	_, _, err := x.dump(&b, [16]byte{9}, chainOf)
	ok(t, err)
	file := filepath.Join(t.TempDir(), "checkpoint")
	rnd := testutil.Rand(t)
	bad := func(what string, data []byte) {
		t.Helper()
		ok(t, os.WriteFile(file, data, 0o600))
		if _, _, err := readCheckpoint(file, true); !errors.Is(err, errCheckpoint) && !errors.Is(err, kml.ErrNewer) {
			t.Errorf("%s: %v", what, err)
		}
		path := file + ".db"
		if err := restoreIndex(path, file, false); err == nil {
			t.Errorf("%s: an index was made of it", what)
		}
		if es, err := filepath.Glob(path + "*"); err != nil || len(es) > 0 {
			t.Errorf("%s: it left %q: %v", what, es, err)
		}
	}
	rounds := 40
	if testutil.Long() {
		rounds = 4000
	}
	for range rounds {
		c := bytes.Clone(b.Bytes())
		i := rnd.IntN(len(c))
		if rnd.IntN(3) == 0 {
			i = rnd.IntN(200)
		}
		c[i] ^= 1 << rnd.IntN(8)
		bad(fmt.Sprintf("byte %d of %d", i, len(c)), c)
		n := rnd.IntN(len(c))
		bad(fmt.Sprintf("cut at %d", n), c[:n])
	}
	// Two blocks in each other's place, one left out, one doubled.
	le := func(off int) int {
		return 12 + int(uint32(b.Bytes()[off])|uint32(b.Bytes()[off+1])<<8|uint32(b.Bytes()[off+2])<<16)
	}
	one := checkpointHeader
	two := one + le(one)
	end := two + le(two)
	d := b.Bytes()
	cat := func(bs ...[]byte) []byte { return bytes.Join(bs, nil) }
	bad("swapped", cat(d[:one], d[two:end], d[one:two], d[end:]))
	bad("without one", cat(d[:one], d[two:]))
	bad("doubled", cat(d[:two], d[one:]))
}

// retained is a fileset whose log has lost its beginning.
func retained(t *testing.T, boot int) (dir string, o Options) {
	t.Helper()
	dir = t.TempDir()
	ok(t, Init(dir, Options{NoWatch: true, Boot: bootOf(boot)}))
	o = Options{NoWatch: true, SyncEvery: time.Hour, RetainSize: 1, RetainAge: 1, Boot: bootOf(boot)}
	tr, err := Open(dir, o)
	ok(t, err)
	d := must[Attr](t)(tr.Mkdir(ctx, nil, kml.RootOID, "d", 0o755))
	f := put(t, tr, d.OID, "f", "before")
	must[Attr](t)(tr.Link(ctx, nil, f.OID, kml.RootOID, "link"))
	must[Attr](t)(tr.Symlink(ctx, nil, kml.RootOID, "s", "d/f"))
	fillSegment(t, tr)
	put(t, tr, d.OID, "g", "between")
	ok(t, tr.Commit(ctx))
	for tr.log.Start() == 0 { // or the tree's own loop was first
		_, err := tr.retain()
		ok(t, err)
	}
	if tr.kept.cursor < tr.log.Start() {
		t.Fatalf("the checkpoint is of %s, the log begins after %s", tr.kept.cursor, tr.log.Start())
	}
	put(t, tr, d.OID, "f", "after")
	put(t, tr, d.OID, "h", "new")
	ok(t, tr.Rename(ctx, nil, kml.RootOID, "s", d.OID, "t", 0))
	ok(t, tr.Close())
	return dir, o
}

// wreck overwrites the middle of a file.
func wreck(t *testing.T, path string) {
	t.Helper()
	b := must[[]byte](t)(os.ReadFile(path))
	for i := range b {
		if i%3 == 0 {
			b[i] ^= 0x55
		}
	}
	ok(t, os.WriteFile(path, b, 0o600))
}

// TestIndexFromCheckpoint: an index that is damaged or missing, or of a copy, is
// made again although the log has lost its beginning.
func TestIndexFromCheckpoint(t *testing.T) {
	for _, c := range []struct {
		name string
		harm func(t *testing.T, dir string) string
	}{
		{"damaged", func(t *testing.T, dir string) string {
			wreck(t, filepath.Join(dir, ExtDirName, "index.db"))
			return dir
		}},
		{"missing", func(t *testing.T, dir string) string {
			ok(t, os.Remove(filepath.Join(dir, ExtDirName, "index.db")))
			return dir
		}},
		{"copied", copyFileset},
		{"damaged, machine crashed", func(t *testing.T, dir string) string {
			tr, err := Open(dir, Options{NoWatch: true, Boot: bootOf(1)})
			ok(t, err)
			ok(t, tr.closeParts())
			wreck(t, filepath.Join(dir, ExtDirName, "index.db"))
			return dir
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, o := retained(t, 1)
			tr, err := Open(dir, o)
			ok(t, err)
			want := treeOIDs(t, tr)
			ok(t, tr.Close())
			dir = c.harm(t, dir)
			var said logLines
			o.Logger, o.Boot = slog.New(&said), bootOf(2)
			tr, err = Open(dir, o)
			ok(t, err)
			defer func() { ok(t, tr.Close()) }()
			if !said.has("index is made again from the checkpoint") {
				t.Errorf("the opener said %q", said.lines)
			}
			end := tr.log.End()
			ok(t, tr.Scan(ctx))
			for _, r := range recordsAfter(t, tr, end) {
				if r.Op != kml.OpSetattr && r.Op != kml.OpMark {
					t.Errorf("the scan journaled %s", kml.AppendText(nil, r))
				}
			}
			got := treeOIDs(t, tr)
			if len(got) != len(want) || len(want) != 6 {
				t.Errorf("%d names, there were %d", len(got), len(want))
			}
			for n, oid := range want {
				if got[n] != oid {
					t.Errorf("%v is %v, was %v", n, got[n], oid)
				}
			}
			checkAgrees(t, tr)
			for name, data := range map[string]string{"f": "after", "g": "between", "h": "new"} {
				a := must[Attr](t)(tr.Lookup(ctx, nil, must[Attr](t)(tr.Lookup(ctx, nil, kml.RootOID, "d")).OID, name))
				if b, err := readObject(t, tr, a.OID); err != nil || string(b) != data {
					t.Errorf("%s: %q %v", name, b, err)
				}
			}
		})
	}
}

func recordsAfter(t *testing.T, tr *Tree, p kml.Position) (rs []*kml.Record) {
	t.Helper()
	rd, err := tr.log.ReaderAfter(p)
	ok(t, err)
	defer rd.Close()
	for {
		r, err := rd.TryNext()
		if err != nil {
			return rs
		}
		rs = append(rs, r)
	}
}

// TestStartOver: with index, checkpoint and the log's beginning lost, all that is
// in the directory is found again, in a history nobody can take for the old one.
func TestStartOver(t *testing.T) {
	for _, at := range []string{"", "tree.startover.made", "tree.startover.exchanged", "tree.weighed", "tree.settled"} {
		t.Run("killed at "+at, func(t *testing.T) {
			dir, o := retained(t, 1)
			tr, err := Open(dir, o)
			ok(t, err)
			site := must[Site](t)(tr.Enrol("client", 0, []byte("k")))
			d := must[Attr](t)(tr.Lookup(ctx, nil, kml.RootOID, "d"))
			r := &kml.Record{Op: kml.OpMkdir, OID: kml.MakeOID(site.ID, 2), Parent: d.OID, Name: "client's", Time: 1,
				Attr: kml.Attr{Mode: 0o40755}, Origin: kml.Origin{Site: site.ID, Seq: 1}}
			if res := tr.Reintegrate(ctx, nil, r, ""); res.Status != ReintApplied {
				t.Fatalf("%+v", res)
			}
			want := treeOIDs(t, tr)
			end, crc := tr.log.EndAndCRC()
			ok(t, tr.Close())
			wreck(t, filepath.Join(dir, ExtDirName, "index.db"))
			wreck(t, filepath.Join(dir, ExtDirName, checkpointFile))
			if at != "" {
				opener(t, dir, at)
			}
			var said logLines
			o.Logger = slog.New(&said)
			if tr, err = Open(dir, o); err != nil {
				t.Fatal(err)
			}
			if at == "" && !said.has("all objects are found again as new ones") {
				t.Errorf("the opener said %q", said.lines)
			}
			if tr.log.Epoch() <= end.Epoch() {
				t.Errorf("epoch %d, was %d", tr.log.Epoch(), end.Epoch())
			}
			for _, p := range []kml.Position{end, end - 1, end + 1, 0} {
				rd, err := tr.log.ReaderAfter(p)
				if err == nil && rd.CRC() == crc {
					t.Errorf("a client at %s may go on", p)
				}
				if err == nil {
					rd.Close()
				}
			}
			ok(t, tr.Scan(ctx))
			got := treeOIDs(t, tr)
			if len(got) != len(want) {
				t.Errorf("%d names, there were %d", len(got), len(want))
			}
			old := map[kml.OID]bool{}
			for _, oid := range want {
				old[oid] = true
			}
			for n, oid := range got {
				if old[oid] {
					t.Errorf("%v has the old oid %v", n, oid)
				}
			}
			checkAgrees(t, tr)
			// What a client sends again is known.
			if res := tr.Reintegrate(ctx, nil, r, ""); res.Status != ReintDuplicate {
				t.Errorf("sent again: %+v", res)
			}
			put(t, tr, kml.RootOID, "more", "more")
			ok(t, tr.Close())
			o.Boot = bootOf(2)
			tr, err = Open(dir, o)
			ok(t, err)
			must[Attr](t)(tr.Lookup(ctx, nil, kml.RootOID, "more"))
			checkAgrees(t, tr)
			ok(t, tr.Close())
		})
	}
}
