package p9srv_test

import (
	"context"
	"fmt"
	"syscall"
	"testing"

	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// syncTree hands out Files that tell of each sync and wait to be told how to
// end it.
type syncTree struct {
	*memfs
	begun chan bool // datasync
	end   chan error
}

type syncFile struct {
	*memconc
	tree *syncTree
}

func (s *syncTree) Attach() (p9.File, error) {
	f, err := s.memfs.Attach()
	if err != nil {
		return nil, err
	}
	return &syncFile{f.(*memconc), s}, nil
}

func (f *syncFile) Bind(context.Context) p9.File { return f }

func (f *syncFile) WalkNames(qids []p9.QID, names []string) ([]p9.QID, p9.File, error) {
	qids, g, err := f.memconc.WalkNames(qids, names)
	if err != nil {
		return qids, nil, err
	}
	return qids, &syncFile{g.(*memconc), f.tree}, nil
}

func (f *syncFile) FSyncContext(ctx context.Context, datasync bool) error {
	f.tree.begun <- datasync
	select {
	case err := <-f.tree.end:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestSyncsJoin has syncs wait for one that runs: one more is enough for all of
// them, and it is as thorough as any of them wants.
func TestSyncsJoin(t *testing.T) {
	testutil.CheckLeaks(t)
	fs := &syncTree{newMemfs("inplace").put("f"), make(chan bool), make(chan error)}
	_, r := serveRaw(t, fs, p9srv.Options{})
	r.attach().openPath(1, p9.WriteOnly, "f")
	sync := func(tag wire.Tag, datasync uint32) { r.send(tag, &wire.Tfsync{FID: 1, Datasync: datasync}) }
	began := func(datasync bool) {
		t.Helper()
		if got := <-fs.begun; got != datasync {
			t.Fatalf("sync with datasync %v, want %v", got, datasync)
		}
	}
	answers := func(want ...string) {
		t.Helper()
		left := map[string]bool{}
		for _, w := range want {
			left[w] = true
		}
		for range want {
			tag, m := r.recv()
			got := wire.Text(tag, m)
			if !left[got] {
				t.Fatalf("got %s, want one of %v", got, left)
			}
			delete(left, got)
		}
	}

	sync(1, 1)
	began(true)
	for tag := wire.Tag(2); tag < 10; tag++ {
		sync(tag, uint32(tag%4))
	}
	// One that has no proper length joins nobody, one that was not begun is
	// dropped.
	r.bytes([]byte{13, 0, 0, 0, byte(wire.TypeTfsync), 20, 0, 1, 0, 0, 0, 0, 0})
	r.expect("Rlerror tag 20 errno 22")
	r.send(21, &wire.Tflush{OldTag: 3})
	r.expect("Rflush tag 21")
	fs.end <- nil
	r.expect("Rfsync tag 1")
	began(false)
	// This one runs for tag 4 first: a flush of another ends with it.
	r.send(22, &wire.Tflush{OldTag: 9})
	r.ok(&wire.Tgetattr{FID: 1})
	fs.end <- nil
	want := []string{"Rflush tag 22"}
	for _, tag := range []int{2, 4, 5, 6, 7, 8, 9} {
		want = append(want, fmt.Sprintf("Rfsync tag %d", tag))
	}
	answers(want...)

	// The flush of the one that it runs for does not end it for the others, an
	// error does.
	sync(10, 0)
	began(false)
	sync(2, 0)
	sync(3, 1)
	sync(4, 1)
	r.ok(&wire.Tgetattr{FID: 1})
	fs.end <- nil
	r.expect("Rfsync tag 10")
	began(false)
	r.send(5, &wire.Tflush{OldTag: 2})
	began(true)
	fs.end <- syscall.EIO
	answers("Rlerror tag 2 errno 4", "Rflush tag 5", "Rlerror tag 3 errno 5", "Rlerror tag 4 errno 5")
}
