package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// lostFolder keeps files of versions that the master does not have any more: it
// may have lost them in a crash, and ask for them when it has found that out.
// lostAge is how long.
const (
	lostFolder = "lost"
	lostAge    = 24 * time.Hour
)

func lostName(oid kml.OID, v kml.Position) string {
	return fmt.Sprintf("%016x.%016x", uint64(oid), uint64(v))
}

// openLost makes the folder, or empties it when its time is past.
func (r *Replica) openLost() error {
	path := r.t.state.Path(lostFolder)
	st, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return os.Mkdir(path, 0o700)
	}
	if err == nil && r.t.now().Sub(st.ModTime()) > lostAge {
		return emptyDir(path)
	}
	return err
}

// keepLost keeps a file that is about to be replaced by what the master has at
// version now, when it is of a version that the master may have lost.
func (r *Replica) keepLost(p place, known *Object, now kml.Position, st *unix.Statx_t) error {
	if known == nil || r.doubt.Load() || lacking(known) || known.DataVersion == now || !lostBefore(known.DataVersion, now) || r.edited(known, st) {
		return nil
	}
	src, err := unix.Open(p.path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	name := lostName(known.OID, known.DataVersion)
	tmp := r.t.state.Path("stage", "lost-"+name)
	dst, err := unix.Open(tmp, unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(cloneOrCopy(dst, src), unix.Close(dst)); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Rename(tmp, r.t.state.Path(lostFolder, name))
}

// Hold opens all the contents that are here of a version of a file, or of one
// that came later and that the master has lost. ErrNotExist when there are none.
func (r *Replica) Hold(oid kml.OID, v kml.Position) (*Held, error) {
	h, err := r.holdLost(oid, v)
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		return h, err
	}
	o, err := r.t.index.Get(oid)
	if err != nil || lacking(o) || o.DataVersion != v && !lostBefore(o.DataVersion, v) {
		return nil, fmt.Errorf("contents of %v: %w", oid, os.ErrNotExist)
	}
	f, err := r.t.OpenVersion(r.t.ctx, oid)
	if err != nil {
		return nil, err
	}
	a := f.Attr()
	if kml.Position(a.DataVersion) != o.DataVersion || !f.copy && !f.sameAsIndex(o) {
		return nil, errors.Join(fmt.Errorf("contents of %v: %w", oid, os.ErrNotExist), f.Close())
	}
	return &Held{OID: oid, Version: o.DataVersion, Mtime: o.Attr.Mtime, Size: int64(o.Attr.Size),
		ReaderAt: versionReader{r.t.ctx, f}, close: f.Close}, nil
}

// holdLost is Hold for the lost folder.
func (r *Replica) holdLost(oid kml.OID, v kml.Position) (*Held, error) {
	names, err := filepath.Glob(r.t.state.Path(lostFolder, fmt.Sprintf("%016x.*", uint64(oid))))
	if err != nil {
		return nil, err
	}
	var best kml.Position
	for _, name := range names {
		if _, of, ok := parseObjectFile(filepath.Base(name)); ok && (of == v || lostBefore(of, v)) {
			best = max(best, of)
		}
	}
	f, err := os.Open(r.t.state.Path(lostFolder, lostName(oid, best)))
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &Held{OID: oid, Version: best, Mtime: st.ModTime().UnixNano(), Size: st.Size(), ReaderAt: f, close: f.Close}, nil
}

// versionReader reads a VersionHandle as an io.ReaderAt.
type versionReader struct {
	ctx context.Context
	v   *VersionHandle
}

// ReadAt is io.ReaderAt's.
func (r versionReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.v.ReadAt(r.ctx, p, off)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}
