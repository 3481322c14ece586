package p9srv_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"syscall"
	"testing"

	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// partTree hands out Files that take writes in parts and tell of each.
type partTree struct {
	*memfs
	room  int64 // bytes that fit into a file
	parts chan int
}

type partFile struct {
	*memconc
	tree *partTree
}

func (p *partTree) Attach() (p9.File, error) {
	f, err := p.memfs.Attach()
	if err != nil {
		return nil, err
	}
	return &partFile{f.(*memconc), p}, nil
}

func (f *partFile) WritesInParts() bool { return true }

func (f *partFile) WalkNames(qids []p9.QID, names []string) ([]p9.QID, p9.File, error) {
	qids, g, err := f.memconc.WalkNames(qids, names)
	if err != nil {
		return qids, nil, err
	}
	return qids, &partFile{g.(*memconc), f.tree}, nil
}

func (f *partFile) WriteAt(p []byte, off int64) (int, error) {
	n := int(min(int64(len(p)), max(f.tree.room-off, 0)))
	if n == 0 {
		return 0, syscall.ENOSPC
	}
	f.tree.parts <- n
	return f.memconc.WriteAt(p[:n], off)
}

func (p *partTree) serve(t *testing.T) (*raw, chan error) {
	mine, theirs := socketpair(t)
	srv := p9srv.New(p, p9srv.Options{})
	done := make(chan error, 1)
	go func() { done <- srv.ServeConn(t.Context(), theirs) }()
	t.Cleanup(func() { mine.Close(); srv.Close() })
	r := &raw{t, mine}
	r.ok(&wire.Tversion{Msize: 1 << 20, Version: wire.Version9P2000L})
	r.ok(&wire.Tattach{AFID: wire.NoFID, UID: p9.UID(os.Getuid())})
	r.openPath(1, p9.ReadWrite, "f")
	return r, done
}

// TestParts sends large writes piece by piece and has their files written
// meanwhile.
func TestParts(t *testing.T) {
	testutil.CheckLeaks(t)
	rnd := testutil.Rand(t)
	const room = 2 << 20
	fs := &partTree{newMemfs("inplace").put("f"), room, make(chan int, 1000)}
	r, done := fs.serve(t)
	file := make([]byte, room)
	length := copy(file, "contents of f")
	for range 20 {
		data := make([]byte, 128<<10+rnd.IntN(800<<10))
		for i := range data {
			data[i] = byte(rnd.Uint32())
		}
		off := rnd.IntN(room - len(data))
		copy(file[off:], data)
		length = max(length, off+len(data))
		m := (&wire.Twrite{FID: 1, Offset: uint64(off), Data: data}).Append(nil, 1)
		rest := (&wire.Tgetattr{FID: 1}).Append(nil, 2)
		// All but the last byte: most of it must have been written before that.
		r.bytes(m[:len(m)-1])
		for got := 0; got < len(data)-64<<10; {
			got += <-fs.parts
		}
		r.bytes(append(m[len(m)-1:], rest...))
		if tag, a := r.recv(); tag != 1 || a.(*wire.Rwrite).Count != uint32(len(data)) {
			t.Fatal(wire.Text(tag, a))
		}
		if tag, a := r.recv(); tag != 2 || a.(*wire.Rgetattr).Attr.Size != uint64(length) {
			t.Fatal(wire.Text(tag, a))
		}
	}
	var got []byte
	for len(got) < length {
		got = append(got, r.ok(&wire.Tread{FID: 1, Offset: uint64(len(got)), Count: 1 << 20}).(*wire.Rread).Data...)
	}
	if !bytes.Equal(got, file[:length]) {
		t.Error("the file holds something else")
	}

	// What does not fit is told by the count, then by an error; the messages
	// behind are understood.
	big := make([]byte, 500<<10)
	if a := r.ok(&wire.Twrite{FID: 1, Offset: room - 300000, Data: big}).(*wire.Rwrite); a.Count != 300000 {
		t.Errorf("%d bytes written where 300000 have room", a.Count)
	}
	r.fails(&wire.Twrite{FID: 1, Offset: room, Data: big}, syscall.ENOSPC)
	// What is no proper write of an open file is refused, as a short one is.
	r.ok(walk(root, 2, "f"))
	r.fails(&wire.Twrite{FID: 2, Data: big}, syscall.EBADF)
	r.fails(&wire.Twrite{FID: 3, Data: big}, syscall.EBADF)
	r.fails(&wire.Twrite{FID: 1, Offset: 1<<63 - 5, Data: big}, syscall.EFBIG)
	lies := (&wire.Twrite{FID: 1, Data: big}).Append(nil, 1)
	lies[7+4+8]++
	r.bytes(lies)
	r.expect("Rlerror tag 1 errno 22")

	// The end in the middle.
	r.bytes((&wire.Twrite{FID: 1, Data: big}).Append(nil, 1)[:400<<10])
	r.c.Close()
	if err := <-done; !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the end within a message: %v", err)
	}
}
