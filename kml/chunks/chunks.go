package chunks

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"

	"github.com/mezzofs/mezzo/kml"
)

const (
	// Size is the size of a chunk, in bytes; Fan how many hashes make one of the
	// level above.
	Size = 16 << 10
	Fan  = 64

	// HeadLen is the length of the header, HashLen that of a hash, in bytes.
	HeadLen = 64
	HashLen = 32

	magic   = "MZCT"
	version = 1

	// MaxFile is the size of the largest file that is compared so, in bytes: its
	// tree takes 256 MiB of memory.
	MaxFile = 128 << 30
)

// ErrFormat is a tree whose bytes make no sense.
var ErrFormat = errors.New("not a hash tree of a file")

// Hash is a BLAKE3 hash of 32 bytes.
type Hash [HashLen]byte

// Tree is the hashes of a file's contents. levels[0] has one for each chunk.
type Tree struct {
	size   uint64
	levels [][]Hash
}

// Len is the size of the file, in bytes.
func (t *Tree) Len() uint64 { return t.size }

// Root stands for all of the contents. Files of different sizes may share one:
// compare both.
func (t *Tree) Root() Hash { return t.levels[len(t.levels)-1][0] }

// counts is how many hashes each level of the tree of a file has, the chunks
// first. An empty file has one, of nothing.
func counts(size uint64) []int {
	n := int((size + Size - 1) / Size)
	out := []int{max(n, 1)}
	for out[len(out)-1] > 1 {
		out = append(out, (out[len(out)-1]+Fan-1)/Fan)
	}
	return out
}

// EncodedLen is the length of the tree of a file of that size, as bytes.
func EncodedLen(size uint64) int64 {
	n := int64(HeadLen)
	for _, c := range counts(size) {
		n += int64(c) * HashLen
	}
	return n
}

// offsets is where each level begins in the bytes of a tree, the chunks first.
func offsets(size uint64) []int64 {
	cs := counts(size)
	out := make([]int64, len(cs))
	at := int64(HeadLen)
	for l := len(cs) - 1; l >= 0; l-- {
		out[l] = at
		at += int64(cs[l]) * HashLen
	}
	return out
}

func newTree(size uint64) *Tree {
	cs := counts(size)
	t := &Tree{size: size, levels: make([][]Hash, len(cs))}
	for l, n := range cs {
		t.levels[l] = make([]Hash, n)
	}
	return t
}

// parents makes the hashes of the level above from, of those in [from, to).
func (t *Tree) parents(level, from, to int) {
	kids := t.levels[level]
	b := make([]byte, 0, Fan*HashLen)
	for i := from; i < to; i++ {
		b = b[:0]
		for _, h := range kids[i*Fan : min((i+1)*Fan, len(kids))] {
			b = append(b, h[:]...)
		}
		t.levels[level+1][i] = blake3.Sum256(b)
	}
}

// Make reads a file of that size and hashes it, with some goroutines at a time.
// A file that ends before is io.ErrUnexpectedEOF.
func Make(ctx context.Context, r ReaderAt, size uint64) (*Tree, error) {
	t := newTree(size)
	if err := t.read(ctx, r, []kml.Extent{{Off: 0, Len: size}}); err != nil {
		return nil, err
	}
	return t, nil
}

// ReaderAt reads a file; fewer bytes than asked for mean its end.
type ReaderAt interface {
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
}

// Plain is a file of this host.
type Plain struct{ io.ReaderAt }

// ReadAt reads without looking at ctx.
func (p Plain) ReadAt(_ context.Context, b []byte, off int64) (int, error) {
	n, err := p.ReaderAt.ReadAt(b, off)
	if err == io.EOF {
		err = nil
	}
	return n, err
}

// Update is the tree of a later version of the file, which may differ from t's
// in the extents alone, and behind t's end: only the chunks there are read.
func (t *Tree) Update(ctx context.Context, r ReaderAt, size uint64, extents []kml.Extent) (*Tree, error) {
	n := newTree(size)
	copy(n.levels[0], t.levels[0])
	es := append([]kml.Extent(nil), extents...)
	// The last chunk of the shorter one has another length in the longer.
	if short := min(size, t.size); size != t.size {
		es = append(es, kml.Extent{Off: short - short%Size, Len: size - (short - short%Size)})
	}
	if err := n.read(ctx, r, es); err != nil {
		return nil, err
	}
	return n, nil
}

// piece is how many chunks are read at a time: what the processor's own cache
// holds.
const piece = 8

// read hashes the chunks that extents touch, and then the levels above.
func (t *Tree) read(ctx context.Context, r ReaderAt, extents []kml.Extent) error {
	if t.size == 0 {
		t.levels[0][0] = blake3.Sum256(nil)
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, runtime.GOMAXPROCS(0)))
	bufs := sync.Pool{New: func() any { return new([piece * Size]byte) }}
	done := make([]uint64, (len(t.levels[0])+63)/64) // a bit a chunk that was begun
	for _, e := range extents {
		end := min(e.Off+e.Len, t.size)
		if e.Len == 0 || e.Off >= t.size || end < e.Off {
			continue
		}
		for at := int(e.Off / Size); at < int((end+Size-1)/Size); {
			if done[at/64]&(1<<(at%64)) != 0 {
				at++
				continue
			}
			from := at
			for ; at < int((end+Size-1)/Size) && at-from < piece && done[at/64]&(1<<(at%64)) == 0; at++ {
				done[at/64] |= 1 << (at % 64)
			}
			to := at
			g.Go(func() error { return t.readRun(ctx, r, from, to, &bufs) })
			if ctx.Err() != nil {
				return g.Wait()
			}
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for l := range len(t.levels) - 1 {
		t.parents(l, 0, len(t.levels[l+1]))
	}
	return nil
}

// readRun hashes chunks that follow each other.
func (t *Tree) readRun(ctx context.Context, r ReaderAt, from, to int, bufs *sync.Pool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	off := uint64(from) * Size
	buf := bufs.Get().(*[piece * Size]byte)
	defer bufs.Put(buf)
	b := buf[:min(uint64(to)*Size, t.size)-off]
	n, err := r.ReadAt(ctx, b, int64(off))
	if err != nil {
		return err
	}
	if n < len(b) {
		return io.ErrUnexpectedEOF
	}
	for i := from; i < to; i++ {
		at := uint64(i)*Size - off
		t.levels[0][i] = blake3.Sum256(b[at:min(at+Size, uint64(len(b)))])
	}
	return nil
}

// AppendHead appends the header of the tree of a file, of which this is version v.
func AppendHead(b []byte, size uint64, v kml.Position) []byte {
	le := binary.LittleEndian
	at := len(b)
	b = append(b, magic...)
	b = le.AppendUint32(b, version)
	b = le.AppendUint64(b, size)
	b = le.AppendUint64(b, uint64(v))
	b = le.AppendUint32(b, Size)
	b = le.AppendUint32(b, Fan)
	return append(b, make([]byte, HeadLen-(len(b)-at))...)
}

// ParseHead reads a header.
func ParseHead(b []byte) (size uint64, v kml.Position, err error) {
	le := binary.LittleEndian
	switch {
	case len(b) < HeadLen || string(b[:4]) != magic:
		return 0, 0, ErrFormat
	case le.Uint32(b[4:]) != version || le.Uint32(b[24:]) != Size || le.Uint32(b[28:]) != Fan:
		return 0, 0, fmt.Errorf("%w: version %d, chunks of %d bytes, %d together: %w", ErrFormat, le.Uint32(b[4:]), le.Uint32(b[24:]), le.Uint32(b[28:]), kml.ErrNewer)
	}
	if size = le.Uint64(b[8:]); size > MaxFile {
		return 0, 0, fmt.Errorf("%w: of %d bytes", ErrFormat, size)
	}
	return size, kml.Position(le.Uint64(b[16:])), nil
}

// ReadAt reads the tree as bytes, as that of version v; fewer than asked for at
// its end.
func (t *Tree) ReadAt(p []byte, off int64, v kml.Position) (n int) {
	put := func(at int64, b []byte) {
		if at+int64(len(b)) > off+int64(n) && n < len(p) {
			n += copy(p[n:], b[off+int64(n)-at:])
		}
	}
	if off < HeadLen {
		put(0, AppendHead(nil, t.size, v))
	}
	at := int64(HeadLen)
	for l := len(t.levels) - 1; l >= 0 && n < len(p); l-- {
		hs := t.levels[l]
		end := at + int64(len(hs))*HashLen
		for i := max(0, off+int64(n)-at) / HashLen; i < int64(len(hs)) && n < len(p); i++ {
			put(at+i*HashLen, hs[i][:])
		}
		at = end
	}
	return n
}

// Parse reads a tree from its bytes, and checks that they agree with each other.
func Parse(b []byte) (*Tree, kml.Position, error) {
	size, v, err := ParseHead(b)
	if err != nil {
		return nil, 0, err
	}
	if int64(len(b)) != EncodedLen(size) {
		return nil, 0, fmt.Errorf("%w: %d bytes for a file of %d", ErrFormat, len(b), size)
	}
	t := newTree(size)
	for l, off := range offsets(size) {
		for i := range t.levels[l] {
			copy(t.levels[l][i][:], b[off+int64(i)*HashLen:])
		}
	}
	root := t.Root()
	for l := range len(t.levels) - 1 {
		t.parents(l, 0, len(t.levels[l+1]))
	}
	if t.Root() != root {
		return nil, 0, fmt.Errorf("%w: its hashes do not agree", ErrFormat)
	}
	return t, v, nil
}
