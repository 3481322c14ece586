package cachefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/chunks"
	"github.com/mezzofs/mezzo/kml/tree"
)

// fetchDelta fetches only what differs from the file that is in the directory:
// where the log says so, or else where its chunks have other hashes. What comes
// goes into a copy of the file, which costs nothing where the file system shares
// blocks, and else for a large file into a patch. done is false when the file is
// to be fetched whole.
func (r *Replica) fetchDelta(ctx context.Context, up *upstream, f linkFile, w *tree.Want, size uint64, b *fetched) (done bool, err error) {
	if !w.Here || size == 0 {
		return false, nil
	}
	old, err := r.tree.OpenHere(w.OID, false)
	if err != nil {
		return false, nil
	}
	defer old.Close()
	extents := w.Extents
	if !w.Known || b.Version != w.Version || size != w.Size {
		st, err := old.Stat()
		if err != nil || min(uint64(st.Size()), size) < tree.ChunksMin || max(uint64(st.Size()), size) > chunks.MaxFile {
			return false, err
		}
		if extents, err = r.compare(ctx, up, w.OID, old, b); extents == nil || err != nil {
			return false, err
		}
	}
	n := uint64(0)
	for i := range extents {
		e := &extents[i]
		e.Len = min(e.Len, size-min(e.Off, size))
		n += e.Len
	}
	if n > size/4*3 {
		return false, nil
	}
	if err := r.fetchExtents(ctx, f, old, w.OID, size, extents, b); err != nil {
		return false, err
	}
	return true, nil
}

// compare finds where a version at the master differs from a file here, by the
// hashes of chunks; nil when the master gives none.
func (r *Replica) compare(ctx context.Context, up *upstream, oid kml.OID, old *os.File, b *fetched) ([]kml.Extent, error) {
	theirs, err := up.calls.Open(ctx, unix.O_RDONLY, "chunks", fmt.Sprintf("%016x", uint64(oid)))
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EFBIG) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	var mine *chunks.Tree
	var m *chunks.Remote
	// Both may have to read the whole file first: at the same time, and as long as
	// that takes.
	g, both := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		mine, err = r.tree.ChunksHere(both, oid, old)
		return err
	})
	g.Go(func() (err error) {
		m, err = chunks.OpenRemote(both, theirs)
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if m.Version() != b.Version {
		return nil, fmt.Errorf("the hashes of its chunks are of another version: %w", syscall.ESTALE)
	}
	extents, x, err := chunks.Diff(ctx, mine, m)
	if err != nil {
		return nil, err
	}
	b.chunks = x
	if extents == nil {
		extents = []kml.Extent{}
	}
	return extents, nil
}

// fetchExtents fetches ranges of a version of a file, into a patch for the file
// here or a copy of it.
func (r *Replica) fetchExtents(ctx context.Context, f linkFile, old *os.File, oid kml.OID, size uint64, extents []kml.Extent, b *fetched) error {
	stage := r.tree.State().Path("stage", b.Staged+".d")
	to, err := os.OpenFile(stage, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer to.Close()
	if unix.IoctlFileClone(int(to.Fd()), int(old.Fd())) != nil {
		p, ok, err := r.tree.NewPatch(oid, b.Version, size, extents)
		if err != nil {
			return err
		}
		if ok {
			defer p.Close()
			if err := errors.Join(os.Remove(stage), r.readExtents(ctx, f, p, extents)); err != nil {
				return err
			}
			b.Staged, b.Patched = p.Name(), true
			return p.Ready()
		}
		if err := copyFile(ctx, to, old); err != nil {
			return err
		}
	}
	if err := to.Truncate(int64(size)); err != nil {
		return err
	}
	if err := r.readExtents(ctx, f, to, extents); err != nil {
		return err
	}
	b.Staged += ".d"
	return nil
}

// readExtents fetches ranges of a file.
func (r *Replica) readExtents(ctx context.Context, f linkFile, to io.WriterAt, extents []kml.Extent) error {
	for _, e := range extents {
		for at := e.Off; at < e.Off+e.Len; at += fetchPiece {
			p := make([]byte, min(fetchPiece, e.Off+e.Len-at))
			if err := readParts(ctx, f, p, int64(at)); err != nil {
				return err
			}
			if _, err := to.WriteAt(p, int64(at)); err != nil {
				return err
			}
			r.progress.bytes.Add(int64(len(p)))
		}
	}
	return nil
}

// copyFile copies a file, less its holes.
func copyFile(ctx context.Context, to, from *os.File) error {
	buf := make([]byte, 1<<20)
	for off := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := from.ReadAt(buf, off)
		if n > 0 {
			if e := writeSparse(to, buf[:n], off, 0); e != nil {
				return e
			}
			off += int64(n)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
