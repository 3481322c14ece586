package chunks

import (
	"context"
	"fmt"
	"io"

	"github.com/mezzofs/mezzo/kml"
)

// Remote is the tree of a file on another host, of which parts are read.
type Remote struct {
	r       ReaderAt
	size    uint64
	offs    []int64
	version kml.Position
}

// OpenRemote reads the header of a tree.
func OpenRemote(ctx context.Context, r ReaderAt) (*Remote, error) {
	b := make([]byte, HeadLen)
	if err := readFull(ctx, r, b, 0); err != nil {
		return nil, err
	}
	size, v, err := ParseHead(b)
	if err != nil {
		return nil, err
	}
	return &Remote{r: r, size: size, offs: offsets(size), version: v}, nil
}

// Size is the size of the file, and Version which one of its versions the tree
// is of.
func (m *Remote) Size() uint64          { return m.size }
func (m *Remote) Version() kml.Position { return m.version }

func readFull(ctx context.Context, r ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(ctx, b, off)
	if err == nil && n < len(b) {
		err = fmt.Errorf("%w: %w", ErrFormat, io.ErrUnexpectedEOF)
	}
	return err
}

// hashes reads n hashes of a level, from the i-th on.
func (m *Remote) hashes(ctx context.Context, level, i, n int) ([]Hash, error) {
	b := make([]byte, n*HashLen)
	if err := readFull(ctx, m.r, b, m.offs[level]+int64(i)*HashLen); err != nil {
		return nil, err
	}
	out := make([]Hash, n)
	for k := range out {
		copy(out[k][:], b[k*HashLen:])
	}
	return out, nil
}

// whole is how many nodes must differ before their level below is read in one go
// instead of part by part, as a share of a level: 1 in wholeShare.
const wholeShare = 4

// Diff compares a file here, of which mine is the tree, with one elsewhere, and
// says where that one may differ; and it is that one's tree. What is behind its
// end is not among the extents.
func Diff(ctx context.Context, mine *Tree, m *Remote) ([]kml.Extent, *Tree, error) {
	theirs := newTree(m.size)
	copy(theirs.levels[0], mine.levels[0])
	top := len(theirs.levels) - 1
	hs, err := m.hashes(ctx, top, 0, 1)
	if err != nil {
		return nil, nil, err
	}
	root := hs[0]
	var differ []int // nodes of the level, ascending
	if !mine.has(top, 0, root, m.size) {
		differ = []int{0}
	}
	for l := top; l > 0 && len(differ) > 0; l-- {
		if differ, err = m.below(ctx, mine, theirs, l, differ); err != nil {
			return nil, nil, err
		}
	}
	if top == 0 && len(differ) > 0 {
		theirs.levels[0][0] = root
	}
	for l := range top {
		theirs.parents(l, 0, len(theirs.levels[l+1]))
	}
	if theirs.Root() != root {
		return nil, nil, fmt.Errorf("%w: its hashes do not agree", ErrFormat)
	}
	var out []kml.Extent
	for _, i := range differ {
		off := uint64(i) * Size
		n := min(Size, m.size-off)
		if k := len(out); k > 0 && out[k-1].Off+out[k-1].Len == off {
			out[k-1].Len += n
		} else if n > 0 {
			out = append(out, kml.Extent{Off: off, Len: n})
		}
	}
	return out, theirs, nil
}

// below reads what is below some nodes of a level, and says which of that differs.
func (m *Remote) below(ctx context.Context, mine, theirs *Tree, level int, nodes []int) ([]int, error) {
	var differ []int
	n := len(theirs.levels[level-1])
	look := func(from int, hs []Hash) {
		for k, h := range hs {
			i := from + k
			if level == 1 {
				theirs.levels[0][i] = h
			}
			if !mine.has(level-1, i, h, m.size) {
				differ = append(differ, i)
			}
		}
	}
	for k := 0; k < len(nodes); {
		// Nodes that lie close to each other are read together.
		last := k
		for last+1 < len(nodes) && nodes[last+1]-nodes[last] <= wholeShare {
			last++
		}
		from, to := nodes[k]*Fan, min((nodes[last]+1)*Fan, n)
		for at := from; at < to; at += readHashes {
			hs, err := m.hashes(ctx, level-1, at, min(readHashes, to-at))
			if err != nil {
				return nil, err
			}
			look(at, hs)
		}
		k = last + 1
	}
	return differ, nil
}

// readHashes is how many hashes are read at a time.
const readHashes = 8192

// has reports whether a node stands for the same bytes here and there: the i-th
// of a level, in a file of that size there.
func (t *Tree) has(level, i int, h Hash, size uint64) bool {
	if level >= len(t.levels) || i >= len(t.levels[level]) || t.levels[level][i] != h {
		return false
	}
	span := uint64(Size)
	for range level {
		span *= Fan
	}
	// The last node of a level stands for as much as there is.
	end := (uint64(i) + 1) * span
	return min(end, t.size) == min(end, size)
}
