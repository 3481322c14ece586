package tree

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// errDamaged answers for a file that a crash of the machine left in pieces.
var errDamaged = fmt.Errorf("damaged by a crash of the machine: %w", syscall.EIO)

// Damaged is a file that a crash of the machine left missing, shorter than it
// was or different. It keeps the version it had; its contents are not that
// version's, and reading them is EIO until they are mended (Mend, AcceptDamaged,
// a whole rewrite, a file put in its place).
type Damaged struct {
	OID     kml.OID      `json:"oid"`
	Version kml.Position `json:"version"` // DataVersion that the bytes should be
	Reason  string       `json:"reason"`  // for a person
	Missing bool         `json:"missing,omitempty"`
	Name    string       `json:"name"` // last path component, quoted as in Go
}

// damage is the table of damaged files, kept in damaged.json.
type damage struct {
	path string
	n    atomic.Int64 // entries: nearly always none

	mu    sync.Mutex
	m     map[kml.OID]Damaged
	seq   uint64             // of the last that was found
	found map[kml.OID]uint64 // when, as of seq
	more  chan struct{}      // closed when another is found
}

type damageFile struct {
	Version int       `json:"version"`
	Files   []Damaged `json:"files"`
}

const damageVersion = 1

func openDamage(path string) (*damage, error) {
	d := &damage{path: path, m: make(map[kml.OID]Damaged), found: make(map[kml.OID]uint64), more: make(chan struct{})}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil
	}
	if err != nil {
		return nil, err
	}
	var f damageFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if f.Version != damageVersion {
		return nil, fmt.Errorf("%s: version %d: %w", path, f.Version, kml.ErrNewer)
	}
	for _, x := range f.Files {
		d.seq++
		d.m[x.OID], d.found[x.OID] = x, d.seq
	}
	d.n.Store(int64(len(d.m)))
	return d, nil
}

// has reports whether a file is damaged, and how.
func (d *damage) has(oid kml.OID) (Damaged, bool) {
	if d == nil || d.n.Load() == 0 {
		return Damaged{}, false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	x, ok := d.m[oid]
	return x, ok
}

// add notes damaged files, durably.
func (d *damage) add(xs ...Damaged) error {
	if len(xs) == 0 {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, x := range xs {
		d.seq++
		d.m[x.OID], d.found[x.OID] = x, d.seq
	}
	close(d.more)
	d.more = make(chan struct{})
	return d.save()
}

// clear notes that files are whole again, or gone.
func (d *damage) clear(oids ...kml.OID) error {
	if d == nil || d.n.Load() == 0 {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	before := len(d.m)
	for _, oid := range oids {
		delete(d.m, oid)
		delete(d.found, oid)
	}
	if len(d.m) == before {
		return nil
	}
	return d.save()
}

// since lists what was found after seq, which is 0 for all, in the order in which
// it was. last is the seq to go on from, and more is closed at the next find.
func (d *damage) since(seq uint64) (list []Damaged, last uint64, more <-chan struct{}) {
	if d == nil {
		return nil, seq, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.seq > seq {
		for oid, at := range d.found {
			if at > seq {
				list = append(list, d.m[oid])
			}
		}
		slices.SortFunc(list, func(a, b Damaged) int { return cmp.Compare(d.found[a.OID], d.found[b.OID]) })
	}
	return list, d.seq, d.more
}

func (d *damage) list() []Damaged {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]Damaged, 0, len(d.m))
	for _, x := range d.m {
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b Damaged) int { return cmp.Compare(a.OID, b.OID) })
	return out
}

// save writes the table, under mu.
func (d *damage) save() error {
	d.n.Store(int64(len(d.m)))
	f := damageFile{Version: damageVersion, Files: make([]Damaged, 0, len(d.m))}
	for _, x := range d.m {
		f.Files = append(f.Files, x)
	}
	slices.SortFunc(f.Files, func(a, b Damaged) int { return cmp.Compare(a.OID, b.OID) })
	b, err := json.MarshalIndent(f, "", "\t")
	if err != nil {
		return err
	}
	return renameio.WriteFile(d.path, append(b, '\n'), 0o600)
}

// Suspect is the time in which a machine ran that crashed with the fileset
// open. A file whose contents are not its version's, and that was last changed
// then, was left so by the crash: nobody edited it.
type Suspect struct {
	From int64 `json:"from"` // ns
	To   int64 `json:"to"`
}

// suspects reports whether a file was last changed while a run that crashed
// went on.
func (t *Tree) suspects(st *unix.Statx_t) bool {
	s := t.suspect.Load()
	c := nsOf(st.Ctime)
	return s != nil && c >= s.From && c < s.To
}

// damaged describes the damage of o as seen in st, which is nil when there is
// nothing under its names.
func damagedAs(o *Object, st *unix.Statx_t) Damaged {
	d := Damaged{OID: o.OID, Version: o.DataVersion, Name: strconv.Quote(o.Name)}
	switch {
	case st == nil:
		d.Reason, d.Missing = "the crash took it", true
	case st.Size < o.Attr.Size:
		d.Reason = fmt.Sprintf("the crash cut it short: %d bytes of %d are there", st.Size, o.Attr.Size)
	default:
		d.Reason = fmt.Sprintf("written shortly before the crash: %d bytes are there, %d were stored", st.Size, o.Attr.Size)
	}
	return d
}

// foundDamaged notes that what is under an object's name is not its version's
// contents since the crash. handle is its inode when that is new.
func (t *Tree) foundDamaged(o *Object, st *unix.Statx_t, handle []byte) error {
	d := damagedAs(o, st)
	t.logger.Warn("file damaged by the crash of the machine", "fileset", t.dir, "oid", o.OID, "name", o.Name, "reason", d.Reason)
	if err := t.damage.add(d); err != nil {
		return err
	}
	return t.index.Update(func(b *Batch) error {
		if handle != nil {
			return noteInode(b, o.OID, st, handle)
		}
		return noteChange(b, o.OID, st)
	})
}

// whole refuses a file that is damaged, or turns out to be at this look.
func (t *Tree) whole(ctx context.Context, p place) error {
	o := p.obj
	if t.suspect.Load() != nil {
		var st unix.Statx_t
		if err := unix.Statx(p.fd, "", unix.AT_EMPTY_PATH, statxMask, &st); err != nil {
			return err
		}
		if o.Fp != fingerprint(&st) && t.suspects(&st) {
			if err := t.reconcileObject(ctx, o); err != nil {
				return err
			}
		}
	}
	if d, bad := t.damage.has(o.OID); bad {
		return fmt.Errorf("object %v: %s: %w", o.OID, d.Reason, errDamaged)
	}
	return nil
}

// Damaged lists the damaged files, in the order of their oids.
func (t *Tree) Damaged() []Damaged {
	list := t.damage.list()
	return slices.DeleteFunc(list, func(d Damaged) bool {
		_, err := t.index.Get(d.OID)
		return errors.Is(err, ErrNotFound)
	})
}

// AcceptDamaged makes what is on the disk of a damaged file its newest version;
// one that is missing is removed.
func (t *Tree) AcceptDamaged(ctx context.Context, oid kml.OID) error {
	d, bad := t.damage.has(oid)
	if !bad {
		return fmt.Errorf("object %v is not damaged: %w", oid, syscall.ENOENT)
	}
	o, err := t.index.Get(oid)
	if err != nil {
		return orErrno(err, ErrNotFound, syscall.ESTALE, 0)
	}
	if err := t.damage.clear(oid); err != nil {
		return err
	}
	if d.Missing {
		return t.reconcileObject(ctx, o)
	}
	return t.atLocked(ctx, oid, func(p place) error {
		var st unix.Statx_t
		if err := unix.Statx(p.fd, "", unix.AT_EMPTY_PATH, statxMask, &st); err != nil {
			return err
		}
		r := t.record(nil, kml.OpStore)
		r.OID, r.Base.Pos, r.Flags = oid, o.DataVersion, kml.FlagRecovered
		r.Attr = kml.Attr{Size: st.Size, Mtime: nsOf(st.Mtime)}
		return t.commitIntent(r, func(b *Batch) error { return noteChange(b, oid, &st) })
	})
}

// placeholder puts an empty file under the names of a damaged one that is
// missing, for its contents to replace.
func (t *Tree) placeholder(oid kml.OID) error {
	d, bad := t.damage.has(oid)
	if !bad || !d.Missing {
		return nil
	}
	o, err := t.index.Get(oid)
	if err != nil {
		return orErrno(err, ErrNotFound, syscall.ESTALE, 0)
	}
	names := t.index.Names(oid)
	parents := make([]kml.OID, len(names))
	for i, n := range names {
		parents[i] = n.Parent
	}
	defer t.names.lock(parents...).unlock()
	var first *dirRef
	for i, n := range names {
		ref, err := t.dirs.get(n.Parent)
		if err != nil {
			return mapDirErr(err)
		}
		defer ref.release()
		mtime, err := mtimeOf(ref.fd)
		if err != nil {
			return err
		}
		// What is put back is no change of the folder.
		defer func() { _ = place{fd: ref.fd}.utimes(utimeOmit, mtime) }()
		if i > 0 {
			if err := unix.Linkat(first.fd, names[0].Name, ref.fd, n.Name, 0); err != nil {
				return err
			}
			continue
		}
		first = ref
		if err := t.emptyFile(ref.fd, n.Name, o); err != nil {
			return err
		}
	}
	d.Missing = false
	return t.damage.add(d)
}

// emptyFile makes a file with o's owner and mode, and o's from now on.
func (t *Tree) emptyFile(dirfd int, name string, o *Object) error {
	fd, err := unix.Openat(dirfd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if t.root {
		if err := unix.Fchown(fd, int(o.Attr.UID), int(o.Attr.GID)); err != nil {
			return err
		}
	}
	if err := unix.Fchmod(fd, o.Attr.Mode&07777); err != nil {
		return err
	}
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, statxMask, &st); err != nil {
		return err
	}
	h, err := HandleAt(fd, "")
	if err != nil {
		return err
	}
	return t.index.Update(func(b *Batch) error { return noteInode(b, o.OID, &st, h) })
}
