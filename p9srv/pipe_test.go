package p9srv_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// pipeFile reads a file of the system through pipes: most bytes of each answer,
// the rest is copied. What it says of its size may be wrong.
type pipeFile struct {
	*memconc
	tree *pipeTree
}

type pipeTree struct {
	*memfs
	f      *os.File
	most   int
	lie    int       // bytes more than there are
	wait   bool      // in place nothing is promised
	asked  *sync.Map // offsets of reads
	spoil  bool      // nothing can be read at others
	copied *atomic.Bool
}

func (p *pipeTree) Attach() (p9.File, error) {
	f, err := p.memfs.Attach()
	if err != nil {
		return nil, err
	}
	return &pipeFile{f.(*memconc), p}, nil
}

func (f *pipeFile) Bind(ctx context.Context) p9.File {
	return &pipeFile{&memconc{f.memfile, ctx}, f.tree}
}

func (f *pipeFile) WalkNames(qids []p9.QID, names []string) ([]p9.QID, p9.File, error) {
	qids, g, err := f.memconc.WalkNames(qids, names)
	if err != nil {
		return qids, nil, err
	}
	return qids, &pipeFile{g.(*memconc), f.tree}, nil
}

func (f *pipeFile) PipeSize(off int64, n int) int {
	fi, err := f.tree.f.Stat()
	if err != nil || f.ctx == nil && f.tree.wait {
		return 0
	}
	return min(n, int(fi.Size()-off)) + f.tree.lie
}

func (f *pipeFile) ReadToPipe(pipe int, off int64, n int) (int, error) {
	k, err := unix.Splice(int(f.tree.f.Fd()), &off, pipe, nil, min(n, f.tree.most), unix.SPLICE_F_NONBLOCK)
	return int(k), err
}

func (f *pipeFile) ReadAt(p []byte, off int64) (int, error) {
	_, asked := f.tree.asked.Load(off)
	switch {
	case f.ctx == nil && f.tree.wait:
		return 0, p9srv.ErrWouldBlock
	case f.tree.spoil && !asked:
		return 0, io.EOF
	}
	if min(len(p), f.PipeSize(off, len(p))) >= 64<<10 && asked {
		f.tree.copied.Store(true)
	}
	return f.tree.f.ReadAt(p, off)
}

// pipeData is a file of random bytes.
func pipeData(t *testing.T, rnd *rand.Rand, size int) (*os.File, []byte) {
	t.Helper()
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(rnd.Uint32())
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	return f, data
}

// TestPipesUnread ends a connection whose client has left answers in pipes.
func TestPipesUnread(t *testing.T) {
	testutil.CheckLeaks(t)
	const size = 512 << 10
	f, _ := pipeData(t, testutil.Rand(t), size)
	tree := pipeTree{memfs: newMemfs("inplace").put("f"), f: f, most: size, asked: &sync.Map{}, copied: new(atomic.Bool)}
	descriptors := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	before := descriptors()
	srv := p9srv.New(&tree, p9srv.Options{})
	mine, theirs := socketpair(t)
	go srv.ServeConn(context.Background(), theirs)
	r := &raw{t, mine}
	r.ok(&wire.Tversion{Msize: 1 << 20, Version: wire.Version9P2000L})
	r.ok(&wire.Tattach{AFID: wire.NoFID, UID: p9.UID(os.Getuid())})
	r.openPath(1, p9.ReadOnly, "f")
	for tag := range wire.Tag(20) {
		r.send(tag, &wire.Tread{FID: 1, Count: size})
	}
	if _, err := io.ReadFull(r.c, make([]byte, 2*size)); err != nil {
		t.Fatal(err)
	}
	r.c.Close()
	srv.Close()
	if n := descriptors(); n > before {
		t.Errorf("%d descriptors are left open", n-before)
	}
}

// TestPipes reads through pipes what has room there and what has not, beside
// answers of other kinds, in place and on workers.
func TestPipes(t *testing.T) {
	const msize, size = 512 << 10, 1<<20 + 12345
	rnd := testutil.Rand(t)
	f, data := pipeData(t, rnd, size)
	for name, c := range map[string]struct {
		tree   pipeTree
		copied bool
	}{
		"whole":          {pipeTree{most: size}, false},
		"tail":           {pipeTree{most: 70 << 10}, false},
		"worker":         {pipeTree{most: size, wait: true}, false},
		"tail on worker": {pipeTree{most: 100000, wait: true}, false},
		"nothing":        {pipeTree{}, true},
		"too few":        {pipeTree{most: 70 << 10, spoil: true}, true},
		"lie":            {pipeTree{most: size, lie: 1}, true},
	} {
		t.Run(name, func(t *testing.T) {
			testutil.CheckLeaks(t)
			tree := c.tree
			tree.asked = &sync.Map{}
			tree.memfs, tree.f, tree.copied = newMemfs("inplace").put("f"), f, new(atomic.Bool)
			_, r := serveRaw(t, &tree, p9srv.Options{})
			r.ok(&wire.Tversion{Msize: msize, Version: wire.Version9P2000L})
			r.ok(&wire.Tattach{AFID: wire.NoFID, UID: p9.UID(os.Getuid())})
			r.openPath(1, p9.ReadOnly, "f")
			reads := map[wire.Tag]*wire.Tread{}
			var all []byte
			for tag := wire.Tag(1); tag < 50; tag++ {
				m := &wire.Tread{FID: 1, Offset: uint64(rnd.IntN(size)), Count: uint32(rnd.IntN(msize))}
				reads[tag] = m
				tree.asked.Store(int64(m.Offset), true)
				all = (&wire.Tgetattr{FID: 1}).Append(m.Append(all, tag), tag+1000)
			}
			go r.bytes(all)
			for range 2 * len(reads) {
				tag, a := r.recv()
				m := reads[tag]
				if m == nil {
					if a.MsgType() != wire.TypeRgetattr {
						t.Fatal(wire.Text(tag, a))
					}
					continue
				}
				got, ok := a.(*wire.Rread)
				want := data[m.Offset:min(int(m.Offset)+int(min(m.Count, msize-wire.ReadOverhead)), size)]
				if !ok || !bytes.Equal(got.Data, want) {
					t.Fatalf("%s: %.200s", wire.Text(tag, m), wire.Text(tag, a))
				}
			}
			if tree.copied.Load() != c.copied {
				t.Errorf("copied: %v, want %v", tree.copied.Load(), c.copied)
			}
		})
	}
}
