package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
)

// ReintStatus is what became of a client's record.
type ReintStatus uint8

// The outcomes.
const (
	ReintApplied   ReintStatus = 1 + iota // it stands in the log at Pos
	ReintDuplicate                        // it was applied before, at Pos
	ReintConflict                         // the tree is not what the client saw; nothing was done
	ReintRefused                          // the system or a rule said no; nothing was done
)

// ReintResult is the outcome of one record.
type ReintResult struct {
	Status ReintStatus
	Pos    kml.Position // of a conflict or a refusal: the end of the log then
	Errno  syscall.Errno
	Reason string // for a person
}

// errConflict is a tree that is not what a client's record was made against.
type errConflict struct {
	errno  syscall.Errno
	reason string
}

func (e *errConflict) Error() string { return e.reason }

func conflict(errno syscall.Errno, format string, args ...any) error {
	return &errConflict{errno, fmt.Sprintf(format, args...)}
}

// Reintegrate applies a frozen record of a client as the user c: once for each
// origin, however often it is sent. A record whose object or names are not what
// the client saw (its bases) changes nothing. staged is the path of the uploaded
// contents of a store, on the tree's file system (see Stage), or "" when they
// are empty; it is taken on success. The caller has checked that the origin and
// a new oid belong to the session's site, and sends one site's records one at a
// time.
func (t *Tree) Reintegrate(ctx context.Context, c *Cred, r *kml.Record, staged string) ReintResult {
	var pos kml.Position
	var dup bool
	if err := t.index.Update(func(b *Batch) error {
		pos, dup = b.Applied(r.Origin)
		return nil
	}); err != nil {
		return reintResult(r, err)
	}
	if dup {
		return ReintResult{Status: ReintDuplicate, Pos: pos}
	}
	rec := *r
	rec.Flags &= kml.FlagNoReplace | kml.FlagExchange | kml.FlagConflict
	if !c.asProcess() || c != nil {
		rec.UID, rec.GID = c.author()
	}
	err := t.reintegrate(ctx, c, &rec, staged)
	if err == nil && rec.Pos == 0 {
		rec.Pos = t.log.End() // nothing to change, and nothing was logged
	}
	res := reintResult(&rec, err)
	if err != nil {
		res.Pos = t.log.End() // the tree it was held against
	}
	return res
}

func reintResult(r *kml.Record, err error) ReintResult {
	var cf *errConflict
	var errno syscall.Errno
	switch {
	case err == nil:
		return ReintResult{Status: ReintApplied, Pos: r.Pos}
	case errors.As(err, &cf):
		return ReintResult{Status: ReintConflict, Errno: cf.errno, Reason: cf.reason}
	case errors.As(err, &errno):
	default:
		errno = syscall.EIO
	}
	res := ReintResult{Status: ReintRefused, Errno: errno, Reason: err.Error()}
	switch errno {
	case syscall.EEXIST, syscall.ENOENT, syscall.ESTALE, syscall.ENOTEMPTY, syscall.ENOTDIR, syscall.EISDIR:
		res.Status = ReintConflict
	}
	return res
}

func (t *Tree) reintegrate(ctx context.Context, c *Cred, r *kml.Record, staged string) error {
	switch r.Op {
	case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod:
		if _, err := t.index.Get(r.OID); err == nil {
			if r.Flags&kml.FlagConflict != 0 {
				return conflict(syscall.EEXIST, "object %v is there again", r.OID)
			}
			return fmt.Errorf("oid %v is in use: %w", r.OID, syscall.EINVAL)
		}
		if err := c.mayMake(r); err != nil {
			return err
		}
		m := t.makingOf(c, r)
		m.exact = true
		_, _, err := t.make(ctx, m)
		return err
	case kml.OpLink:
		_, err := t.link(ctx, c, r)
		return err
	case kml.OpUnlink, kml.OpRmdir:
		want, base := r.OID, r.VictimBase
		return t.remove(ctx, c, r, func(k child) error {
			if k.oid != want {
				return conflict(syscall.ENOENT, "%q holds another object", r.Name)
			}
			if base != (kml.Base{}) && !holds(k.obj, base, r.Origin.Site) {
				return conflict(syscall.EBUSY, "%q was changed meanwhile", r.Name)
			}
			return nil
		})
	case kml.OpRename:
		want, victim, base := r.OID, r.Victim, r.VictimBase
		r.Victim, r.VictimBase = nil, kml.Base{}
		return t.rename(ctx, c, r, func(src, dst child) error {
			if src.oid != want {
				return conflict(syscall.ENOENT, "%q holds another object", r.Name)
			}
			if dst.oid != 0 && dst.oid != src.oid && (victim == nil || victim.OID != dst.oid) {
				return conflict(syscall.EEXIST, "%q holds another object", r.NewName)
			}
			if dst.oid != 0 && base != (kml.Base{}) && !holds(dst.obj, base, r.Origin.Site) {
				return conflict(syscall.EBUSY, "%q was changed meanwhile", r.NewName)
			}
			return nil
		})
	case kml.OpSetattr:
		seen := *r
		_, err := t.setattr(ctx, c, r, setAttrOf(r), func(now kml.Attr) error { return fitsAttr(&seen, now) })
		return err
	case kml.OpSetxattr:
		seen := *r
		return t.changeXattr(ctx, r, func(p place) error {
			if err := fitsXattr(&seen, p); err != nil {
				return err
			}
			return c.as(func() error { return unix.Setxattr(p.path(), r.Name, r.Value, 0) })
		})
	case kml.OpRemovexattr:
		seen := *r
		return t.changeXattr(ctx, r, func(p place) error {
			if err := fitsXattr(&seen, p); err != nil {
				return err
			}
			return c.as(func() error { return unix.Removexattr(p.path(), r.Name) })
		})
	case kml.OpStore:
		return t.replace(ctx, c, r, staged)
	}
	return fmt.Errorf("a client may not send %v: %w", r.Op, syscall.EINVAL)
}

func setAttrOf(r *kml.Record) SetAttr {
	s := SetAttr{Mode: r.Attr.Mode & 07777, UID: r.Attr.UID, GID: r.Attr.GID, Atime: r.Attr.Atime, Mtime: r.Attr.Mtime}
	for _, m := range []struct {
		in  kml.AttrMask
		out SetMask
	}{{kml.MaskMode, SetMode}, {kml.MaskUID, SetUID}, {kml.MaskGID, SetGID}, {kml.MaskMtime, SetMtime}, {kml.MaskAtime, SetAtime}} {
		if r.Mask&m.in != 0 {
			s.Mask |= m.out
		}
	}
	return s
}

// holds reports whether the object's contents are what base says: the version
// at a position, or the site's own record of a number.
func holds(o *Object, b kml.Base, site kml.SiteID) bool {
	if b.Seq != 0 && o.DataOrigin == (kml.Origin{Site: site, Seq: b.Seq}) {
		return true
	}
	return b.Pos != 0 && o.DataVersion == b.Pos
}

// replace gives an object the contents of a staged file, under all its names.
// Readers keep what they opened, writers follow.
func (t *Tree) replace(ctx context.Context, c *Cred, r *kml.Record, staged string) error {
	staged, err := t.checkStaged(r, staged)
	if err != nil {
		return err
	}
	if err := t.placeholder(r.OID); err != nil {
		return err
	}
	for range maxRetry {
		err := t.replaceOnce(ctx, c, r, staged)
		if !errors.Is(err, errMismatch) {
			return t.answer(err)
		}
		obj, err := t.index.Get(r.OID)
		if err != nil {
			return orErrno(err, ErrNotFound, syscall.ESTALE, 0)
		}
		if err := t.reconcileObject(ctx, obj); err != nil {
			return err
		}
	}
	return syscall.ESTALE
}

// checkStaged holds an upload against what the record says of it.
func (t *Tree) checkStaged(r *kml.Record, staged string) (string, error) {
	if staged == "" {
		if r.Attr.Size != 0 {
			return "", fmt.Errorf("contents of record %d are not in the stage: %w", r.Origin.Seq, syscall.ENODATA)
		}
		f, err := os.CreateTemp(t.Stage(), "empty-*")
		if err != nil {
			return "", err
		}
		return f.Name(), f.Close()
	}
	f, err := os.Open(staged)
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	if uint64(st.Size()) != r.Attr.Size {
		return "", fmt.Errorf("%d bytes are in the stage, the record says %d: %w", st.Size(), r.Attr.Size, syscall.EINVAL)
	}
	if r.Digest == nil {
		return staged, nil
	}
	h := blake3.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	if !bytes.Equal(h.Sum(nil), r.Digest) {
		return "", fmt.Errorf("what is in the stage is not what the record says (BLAKE3): %w", syscall.EINVAL)
	}
	return staged, nil
}

func (t *Tree) replaceOnce(ctx context.Context, c *Cred, r *kml.Record, staged string) error {
	names := t.index.Names(r.OID)
	if len(names) == 0 {
		return conflict(syscall.ESTALE, "object %v is gone", r.OID)
	}
	parents := make([]kml.OID, len(names))
	for i, n := range names {
		parents[i] = n.Parent
	}
	defer t.names.lock(parents...).unlock()
	defer t.objs.lock(r.OID).unlock()
	o := t.objects.acquire(r.OID)
	defer t.objects.release(o)
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := t.cutLocked(o); err != nil {
		return err
	}
	targets, err := t.targets(names)
	defer closeTargets(targets)
	if err != nil {
		return err
	}
	obj, err := t.index.Get(r.OID)
	if err != nil || !slices.Equal(t.index.Names(r.OID), names) {
		return errMismatch
	}
	var st unix.Statx_t
	first := targets[0]
	if err := unix.Statx(first.fd, "", unix.AT_EMPTY_PATH, statxMask, &st); err != nil {
		return err
	}
	seen := st
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return conflict(syscall.EISDIR, "object %v is no regular file", r.OID)
	case st.Size != obj.Fp.Size || nsOf(st.Mtime) != obj.Fp.Mtime:
		if obj.Fp != (Fingerprint{}) {
			return errMismatch // changed behind our back: that is a store of its own first
		}
	case !holds(obj, r.Base, r.Origin.Site) && !t.lostBase(obj, r.Base):
		return conflict(syscall.EBUSY, "contents changed since %v, they are of %v", r.Base.Pos, obj.DataVersion)
	}
	if err := mayReplace(c, first.place(), &st); err != nil {
		return err
	}
	if err := t.dropPrivsLocked(ctx, c, r.OID, first.place()); err != nil {
		return err
	}
	if err := unix.Statx(first.fd, "", unix.AT_EMPTY_PATH, statxMask, &st); err != nil {
		return err
	}
	if err := dress(staged, first.place(), &st, r.Attr.Mtime); err != nil {
		return err
	}
	if err := t.swapIn(ctx, r, swap{o, obj.DataVersion, staged, targets, seen, t.objects.hasWriter(o)}); err != nil {
		return err
	}
	return t.damage.clear(r.OID)
}

// lostBase reports whether a store for a damaged file was made against a later
// version than the one it kept: what the crash took is coming back.
func (t *Tree) lostBase(o *Object, b kml.Base) bool {
	_, bad := t.damage.has(o.OID)
	return bad && b.Pos > o.DataVersion
}

// target is a name that gets a new inode.
type target struct {
	dir   *dirRef
	name  string
	fd    int // O_PATH descriptor of what it holds
	mtime unix.Statx_t
}

func (t target) place() place { return place{fd: t.fd} }

// targets opens every name of an object; its folders are locked by the caller.
func (t *Tree) targets(names []Name) ([]target, error) {
	var out []target
	for _, n := range names {
		ref, err := t.dirs.get(n.Parent)
		if err != nil {
			return out, mismatch(err)
		}
		k := target{dir: ref, name: n.Name, fd: -1}
		out = append(out, k)
		if _, err := t.child(ref.fd, n.Parent, n.Name); err != nil {
			return out, mismatch(err)
		}
		fd, err := unix.Openat(ref.fd, n.Name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return out, mismatch(err)
		}
		out[len(out)-1].fd = fd
		if err := unix.Statx(ref.fd, "", unix.AT_EMPTY_PATH, statxMask, &out[len(out)-1].mtime); err != nil {
			return out, err
		}
	}
	return out, nil
}

func closeTargets(ts []target) {
	for _, t := range ts {
		if t.fd >= 0 {
			unix.Close(t.fd)
		}
		t.dir.release()
	}
}

// mayReplace lets in who may open the file for writing, and its owner: programs
// write files that they made read-only.
func mayReplace(c *Cred, p place, st *unix.Statx_t) error {
	if c.asProcess() || c.UID == st.Uid {
		return nil
	}
	return c.as(func() error {
		fd, err := unix.Open(p.path(), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	})
}

// dress gives a staged file the owner, mode and xattrs of the file it replaces.
func dress(staged string, old place, st *unix.Statx_t, mtime int64) error {
	fd, err := unix.Open(staged, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	p := place{fd: fd}
	if os.Geteuid() == 0 {
		if err := unix.Fchown(fd, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	xs, err := old.xattrs()
	if err != nil {
		return err
	}
	for _, x := range xs {
		if err := unix.Setxattr(p.path(), x.Name, x.Value, 0); err != nil && err != unix.EPERM {
			return fmt.Errorf("xattr %s: %w", x.Name, err)
		}
	}
	if err := unix.Fchmod(fd, uint32(st.Mode)&07777); err != nil {
		return err
	}
	return p.utimes(utimeOmit, mtime)
}

// swap is a replacement of an object's inode.
type swap struct {
	o      *openObject
	was    kml.Position // version of the contents that go
	staged string
	ts     []target
	seen   unix.Statx_t // the file that goes, when its version was compared
	ours   bool         // we have it open for writing
}

// swapIn renames the staged file over each name and journals the store.
func (t *Tree) swapIn(ctx context.Context, r *kml.Record, s swap) error {
	var st unix.Statx_t
	staged, ts := s.staged, s.ts
	handle, err := HandleAt(unix.AT_FDCWD, staged)
	if err != nil {
		return err
	}
	done, replaced := t.objects.replacing(s.o, s.was), false
	defer func() { done(replaced) }()
	m := mutation{
		rec:    r,
		handle: handle,
		call: func() error {
			for i, k := range ts {
				from := staged
				if i < len(ts)-1 {
					from = fmt.Sprintf("%s.%d", staged, i)
					_ = unix.Unlink(from)
					if err := unix.Link(staged, from); err != nil {
						return err
					}
				}
				var err error
				if i == 0 {
					err = k.exchangeIn(from, &s.seen, s.ours)
				} else {
					err = unix.Renameat(unix.AT_FDCWD, from, k.dir.fd, k.name)
				}
				if err != nil {
					// What went in and out again is no change of the folder either.
					return errors.Join(err, (place{fd: k.dir.fd}).utimes(utimeOmit, nsOf(k.mtime.Mtime)))
				}
				replaced = true
				fault.Point("tree.replace")
				// New contents are no change of the folder.
				if err := (place{fd: k.dir.fd}).utimes(utimeOmit, nsOf(k.mtime.Mtime)); err != nil {
					return err
				}
			}
			return nil
		},
		result: func() (err error) {
			k := ts[0]
			if err := unix.Statx(k.dir.fd, k.name, unix.AT_SYMLINK_NOFOLLOW, statxMask, &st); err != nil {
				return err
			}
			r.Attr = kml.Attr{Size: st.Size, Mtime: nsOf(st.Mtime)}
			return nil
		},
		index: func(b *Batch) error { return noteInode(b, r.OID, &st, handle) },
	}
	return t.mutate(ctx, m)
}
