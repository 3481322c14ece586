package replay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	"github.com/google/renameio/v2"
	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/internal/node"
	"github.com/mezzofs/mezzo/kml"
)

// contents is a tree to copy from.
type contents struct{ root *os.Root }

func openContents(dir string) (*contents, error) {
	if dir == "" {
		return &contents{}, nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &contents{root}, nil
}

func (c *contents) close() {
	if c.root != nil {
		c.root.Close()
	}
}

// find is the first of paths under which the tree has a file that looks like
// what w wants; empty: none. With check it is read, if there is a digest.
func (c *contents) find(paths []string, w want, check bool) string {
	for _, p := range paths {
		f, err := c.open(p, w)
		if err == nil && check && w.digest != nil {
			if err = w.check(f); err != nil {
				f.Close()
			}
		}
		if err == nil {
			f.Close()
			return p
		}
	}
	return ""
}

var errUnfit = errors.New("is not what the log says")

// open opens a file that has the size that w wants, and the mtime, if there is
// no digest to tell.
func (c *contents) open(p string, w want) (*os.File, error) {
	if c.root == nil {
		return nil, os.ErrNotExist
	}
	st, err := c.root.Lstat(p)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || !w.fits(st) {
		return nil, errUnfit
	}
	f, err := c.root.OpenFile(p, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if st, err = f.Stat(); err == nil && !(st.Mode().IsRegular() && w.fits(st)) {
		err = errUnfit
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (w want) fits(st os.FileInfo) bool {
	return uint64(st.Size()) == w.size && (w.digest != nil || st.ModTime().UnixNano() == w.mtime)
}

// check reads f and compares its digest.
func (w want) check(f *os.File) error {
	h := blake3.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, int64(w.size))); err != nil {
		return err
	}
	if !bytes.Equal(h.Sum(nil), w.digest) {
		return errUnfit
	}
	return nil
}

// place gives found their contents and lost their holes.
func (x *replayer) place(ctx context.Context, src *contents, found, lost []kml.OID) error {
	for i, o := range append(append([]kml.OID{}, found...), lost...) {
		if err := ctx.Err(); err != nil {
			return err
		}
		w := x.wants[o]
		var f *os.File
		if i < len(found) && w.size > 0 {
			for _, p := range x.names.Paths(o) {
				g, err := src.open(p, w)
				if err == nil {
					f = g
					break
				}
			}
		}
		err := x.placeOne(ctx, o, w, f)
		if f != nil {
			f.Close()
		}
		switch {
		case errors.Is(err, errUnfit): // it changed while it was looked at or copied
			if err = x.placeOne(ctx, o, w, nil); err == nil {
				x.res.Missing = append(x.res.Missing, Missing{o, x.names.Paths(o)[0], w.size})
			}
		case err == nil && f == nil && i < len(found) && w.size > 0:
			x.res.Missing = append(x.res.Missing, Missing{o, x.names.Paths(o)[0], w.size})
		case err == nil && i < len(found):
			x.res.Placed++
		}
		if err != nil {
			return &RecordError{w.pos, kml.OpStore, x.names.Paths(o)[0], err}
		}
	}
	return nil
}

// placeOne puts a file with contents from f, or a hole, in place of o: under its
// first name atomically, then linked over the others.
func (x *replayer) placeOne(ctx context.Context, o kml.OID, w want, f *os.File) error {
	at, err := x.object(o)
	if err != nil {
		return err
	}
	defer at.close()
	old, err := at.stat()
	if err != nil {
		return changed(err)
	}
	if old.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("%w: it is no file", ErrChanged)
	}
	// An empty one may be right already. What follows is done all the same: a
	// replay that was killed may have got as far as here.
	if w.size > 0 || old.Size > 0 || old.Mtim.Nano() != w.mtime {
		if err := x.replace(ctx, at, &old, w, f, o); err != nil {
			return err
		}
		fault.Point("replay.place.replaced")
		if old, err = at.stat(); err != nil {
			return changed(err)
		}
	}
	return x.join(o, at, old.Ino)
}

// join makes all names of o the inode ino that is at at, its first one, and sets
// the times of their folders.
func (x *replayer) join(o kml.OID, at place, ino uint64) error {
	names := x.names.Of(o)
	tmp := place{x.stage, o.String()}
	for _, n := range names[1:] {
		if err := x.linkOver(at, tmp, n, ino); err != nil {
			return err
		}
		fault.Point("replay.place.linked")
	}
	for _, n := range names {
		if err := x.setDirTime(n.Parent, 0); err != nil {
			return err
		}
	}
	return nil
}

// rejoin ends what a killed replay began: a file of several names that got its
// contents under the first of them only is two files, and the records that come
// speak of one.
func (x *replayer) rejoin() error {
	if x.o.DryRun {
		return nil
	}
	for _, o := range x.unsettled() {
		at, err := x.object(o)
		if err != nil {
			return err
		}
		st, err := at.stat()
		if err == nil {
			err = x.join(o, at, st.Ino)
		}
		at.close()
		if err != nil {
			return changed(err)
		}
	}
	return nil
}

// linkOver makes n a name of the inode ino that is at at.
func (x *replayer) linkOver(at, tmp place, n Name, ino uint64) error {
	to, err := x.at(n.Parent, n.Name)
	if err != nil {
		return err
	}
	defer to.close()
	if st, err := to.stat(); err == nil && st.Ino == ino {
		return nil // a rename over itself would leave both
	}
	if err := unix.Linkat(at.fd, at.name, tmp.fd, tmp.name, 0); err != nil {
		return err
	}
	return changed(unix.Renameat(tmp.fd, tmp.name, to.fd, to.name))
}

// longestPending is the longest name renameio can replace: it puts its own
// marks around it.
const longestPending = 235

// replace writes the new file beside the old one and renames it into place, with
// the old one's owner, mode and xattrs and the time that w has.
func (x *replayer) replace(ctx context.Context, at place, old *unix.Stat_t, w want, f *os.File, o kml.OID) error {
	to := at
	if len(at.name) > longestPending {
		to = place{x.stage, o.String() + ".long"}
	}
	p, err := renameio.NewPendingFile(to.path(), renameio.WithTempDir(fmt.Sprintf("/proc/self/fd/%d", x.stage)))
	if err != nil {
		return err
	}
	defer p.Cleanup()
	if f == nil {
		err = p.Truncate(int64(w.size))
	} else {
		err = w.copy(ctx, p, f)
	}
	if err != nil {
		return err
	}
	if err := x.dress(int(p.Fd()), at, old); err != nil {
		return err
	}
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, node.Timespec(w.mtime)}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", p.Fd()), ts, 0); err != nil {
		return err
	}
	if err := p.CloseAtomicallyReplace(); err != nil {
		return err
	}
	if to != at {
		return unix.Renameat(to.fd, to.name, at.fd, at.name)
	}
	return nil
}

// dress gives the file fd owner, xattrs and mode of the one at at.
func (x *replayer) dress(fd int, at place, old *unix.Stat_t) error {
	if err := unix.Fchown(fd, int(old.Uid), int(old.Gid)); err != nil {
		return err
	}
	list, err := readXattr(func(b []byte) (int, error) { return unix.Llistxattr(at.path(), b) })
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	for _, name := range bytes.Split(bytes.TrimSuffix(list, []byte{0}), []byte{0}) {
		if len(name) == 0 {
			continue
		}
		v, err := readXattr(func(b []byte) (int, error) { return unix.Lgetxattr(at.path(), string(name), b) })
		if err == nil {
			err = unix.Fsetxattr(fd, string(name), v, 0)
		}
		if err := x.allow(fmt.Sprintf("xattr %q", name), err); err != nil {
			return err
		}
	}
	return unix.Fchmod(fd, old.Mode&0o7777)
}

// readXattr calls read with room enough.
func readXattr(read func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := read(nil)
		if n == 0 || err != nil {
			return nil, err
		}
		b := make([]byte, n)
		n, err = read(b)
		if err == unix.ERANGE {
			continue // it grew in between
		}
		return b[:max(n, 0)], err
	}
}

const copyChunk = 1 << 20

// copy copies f, and wants it to be what it was when it is through.
func (w want) copy(ctx context.Context, to io.Writer, f *os.File) error {
	h := blake3.New()
	b := make([]byte, min(copyChunk, w.size))
	for left := w.size; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.Read(b[:min(uint64(len(b)), left)])
		if err == io.EOF {
			return errUnfit
		}
		if err != nil {
			return err
		}
		if _, err := to.Write(b[:n]); err != nil {
			return err
		}
		if w.digest != nil {
			h.Write(b[:n])
		}
		left -= uint64(n)
	}
	if w.digest != nil && !bytes.Equal(h.Sum(nil), w.digest) {
		return errUnfit
	}
	if st, err := f.Stat(); err != nil || !w.fits(st) {
		return errUnfit
	}
	return nil
}

// missingFile is the list of files that have a hole.
func (x *replayer) missingFile() string {
	return filepath.Join(x.dir, StateDir, "missing.json")
}

func (x *replayer) loadMissing() error {
	b, err := os.ReadFile(x.missingFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var list []kml.OID
	if err := json.Unmarshal(b, &list); err != nil {
		return fmt.Errorf("%s: %w", path.Join(x.dir, StateDir, "missing.json"), err)
	}
	for _, o := range list {
		x.holes[o] = true
	}
	return nil
}

func (x *replayer) saveMissing(list []kml.OID) error {
	if list == nil {
		list = []kml.OID{}
	}
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return renameio.WriteFile(x.missingFile(), b, 0o600)
}
