package tree

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// Digest is a hash of a whole tree, and of each folder in it, as they were when
// each was looked at: nothing is held still for it. Its folders' entries are in a
// file without a name, so that memory does not grow with the tree.
//
// The entries of a folder are one or more pieces of that file:
//
//	0   u64 where the next piece is; 0: this is the last
//	8   u32 length, then lines as of DigestEntry.AppendText
type Digest struct {
	Root DigestEntry

	f    *os.File
	size int64
}

// digestPiece is about how many bytes of a folder's entries are in memory.
const (
	digestPiece = 128 << 10
	digestHead  = 12
	digestPage  = 256 // entries that are looked at together
)

// MakeDigest walks the tree. progress, when not nil, is told how many names and
// bytes were read, every now and then, from several goroutines.
func (t *Tree) MakeDigest(ctx context.Context, o DigestOptions, progress func(names, bytes int64)) (*Digest, error) {
	fd, err := unix.Open(t.Stage(), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, syscall.EOPNOTSUPP) {
		var f *os.File
		if f, err = os.CreateTemp(t.Stage(), "digest"); err == nil {
			fd = int(f.Fd())
			fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			err = errors.Join(err, os.Remove(f.Name()), f.Close())
		}
	}
	if err != nil {
		return nil, err
	}
	d := &Digest{f: os.NewFile(uintptr(fd), "digest"), size: 1}
	g := &digester{t: t, o: o, ctx: ctx, d: d, progress: progress}
	e, err := g.entry(Name{}, "")
	if err == nil && e == nil {
		err = syscall.ESTALE
	}
	if err == nil {
		e.Content, e.Ref, err = g.folder(kml.RootOID, "", 0)
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	d.Root = *e
	return d, nil
}

// Close gives the digest up.
func (d *Digest) Close() error { return d.f.Close() }

// List reads a piece of a folder's entries, as lines, and says where the next one
// is, 0 behind the last.
func (d *Digest) List(ref int64) (lines []byte, next int64, err error) {
	head := make([]byte, digestHead)
	if ref < 1 || ref > d.size-digestHead {
		return nil, 0, syscall.EINVAL
	}
	if _, err := d.f.ReadAt(head, ref); err != nil {
		return nil, 0, err
	}
	n := int64(binary.LittleEndian.Uint32(head[8:]))
	next = int64(binary.LittleEndian.Uint64(head))
	if n > d.size-ref-digestHead || next < 0 || next > d.size {
		return nil, 0, syscall.EINVAL
	}
	lines = make([]byte, n)
	_, err = d.f.ReadAt(lines, ref+digestHead)
	return lines, next, err
}

// listing is the entries of a folder on their way to the file.
type listing struct {
	d           *Digest
	buf         []byte
	first, last int64
}

func (l *listing) flush() error {
	at := l.d.size
	b := binary.LittleEndian.AppendUint64(nil, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(l.buf)))
	if _, err := l.d.f.WriteAt(append(b, l.buf...), at); err != nil {
		return err
	}
	l.d.size += int64(digestHead + len(l.buf))
	if l.last != 0 {
		if _, err := l.d.f.WriteAt(binary.LittleEndian.AppendUint64(nil, uint64(at)), l.last); err != nil {
			return err
		}
	} else {
		l.first = at
	}
	l.last, l.buf = at, l.buf[:0]
	return nil
}

// digester makes a digest.
type digester struct {
	t        *Tree
	o        DigestOptions
	ctx      context.Context
	d        *Digest
	progress func(names, bytes int64)

	names, bytes atomic.Int64
	bufs         sync.Pool
}

// folder looks at all that is in a folder and below.
func (g *digester) folder(oid kml.OID, path string, depth int) (sum Sum, ref int64, err error) {
	if depth > maxDepth {
		return sum, 0, syscall.ELOOP
	}
	names, err := g.list(oid)
	if err != nil {
		return sum, 0, err
	}
	l := listing{d: g.d}
	h := blake3.New()
	for page := range slices.Chunk(names, digestPage) {
		if err := g.ctx.Err(); err != nil {
			return sum, 0, err
		}
		es, err := g.page(oid, path, page)
		if err != nil {
			return sum, 0, err
		}
		for _, e := range es {
			if e == nil {
				continue
			}
			if e.IsDir() {
				if e.Content, e.Ref, err = g.below(e, path, depth); err != nil {
					return sum, 0, err
				}
			}
			s := e.Sum()
			_, _ = h.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(e.Name))))
			_, _ = h.WriteString(e.Name)
			_, _ = h.Write(s[:])
			l.buf = append(e.AppendText(l.buf), '\n')
			if len(l.buf) >= digestPiece {
				if err := l.flush(); err != nil {
					return sum, 0, err
				}
			}
		}
	}
	if err := l.flush(); err != nil {
		return sum, 0, err
	}
	h.Sum(sum[:0])
	return sum, l.first, nil
}

// below is folder for an entry; one of which nothing is known has nothing below
// that could be the master's.
func (g *digester) below(e *DigestEntry, path string, depth int) (Sum, int64, error) {
	if e.OID == 0 {
		return Sum{}, 0, nil
	}
	sum, ref, err := g.folder(e.OID, joinPath(path, e.Name), depth+1)
	if errors.Is(err, errNoFolder) || errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ESTALE) || errors.Is(err, ErrNotFound) {
		e.Busy = true // it moved
		return Sum{}, 0, nil
	}
	return sum, ref, err
}

func joinPath(up, name string) string {
	if up == "" {
		return name
	}
	return up + "/" + name
}

// list is the names in a folder, sorted: on a replica those of the disk.
func (g *digester) list(oid kml.OID) (names []string, err error) {
	if r := g.t.replica; r != nil {
		ref, err := r.folder(oid)
		if err != nil {
			return nil, err
		}
		defer ref.release()
		fd, err := unix.Openat(ref.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		defer unix.Close(fd)
		es, err := readNames(fd)
		for _, e := range es {
			if oid != kml.RootOID || e.Name != ExtDirName {
				names = append(names, e.Name)
			}
		}
		slices.Sort(names)
		return names, err
	}
	for after := ""; ; after = names[len(names)-1] {
		es, err := g.t.index.Children(oid, after, 1024)
		if err != nil || len(es) == 0 {
			return names, err
		}
		for _, e := range es {
			names = append(names, e.Name)
		}
	}
}

// page looks at some names of a folder, with some goroutines at a time.
func (g *digester) page(oid kml.OID, path string, names []string) ([]*DigestEntry, error) {
	es := make([]*DigestEntry, len(names))
	var w errgroup.Group
	w.SetLimit(max(2, runtime.GOMAXPROCS(0)))
	const part = 16
	for at := 0; at < len(names); at += part {
		w.Go(func() error {
			for i := at; i < min(at+part, len(names)); i++ {
				n := Name{oid, names[i]}
				e, err := g.entry(n, joinPath(path, n.Name))
				if err != nil {
					return err
				}
				if es[i] = e; e != nil && !e.IsDir() {
					g.contents(n, e)
				}
			}
			return nil
		})
	}
	err := w.Wait()
	if g.progress != nil {
		g.progress(g.names.Add(int64(len(names))), g.bytes.Load())
	}
	return es, err
}

// entry is what a name holds, less its contents; nil when it holds nothing, or
// nothing that counts.
func (g *digester) entry(n Name, path string) (*DigestEntry, error) {
	if g.t.replica != nil {
		return g.onDisk(n, path)
	}
	oid := kml.RootOID
	if n.Parent != 0 {
		var known bool
		if oid, _, known = g.t.index.Child(n.Parent, n.Name); !known {
			return nil, nil
		}
	}
	o, err := g.t.index.Get(oid)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil || !g.o.Choose.keeps(path, o.Attr.Mode, o.Attr.Size) {
		return nil, err
	}
	e := entryOf(o, n.Name)
	e.Xattrs = sumXattrs(g.t.xattrsOf(g.ctx, o), g.o.UserXattrs)
	e.Nlink = g.links(o, func(Name) bool { return true })
	return e, nil
}

func entryOf(o *Object, name string) *DigestEntry {
	e := &DigestEntry{Name: name, Mode: o.Attr.Mode, UID: o.Attr.UID, GID: o.Attr.GID, Mtime: o.Attr.Mtime, Target: o.Target,
		OID: o.OID, Version: o.Version, DataVersion: o.DataVersion}
	switch o.Attr.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Size = o.Attr.Size
	case unix.S_IFBLK, unix.S_IFCHR:
		e.Rdev = o.Attr.Rdev
	}
	return e
}

// links counts the names of an object that count, as holds says of each.
func (g *digester) links(o *Object, holds func(Name) bool) (n uint32) {
	if o.Attr.Mode&unix.S_IFMT == unix.S_IFDIR || o.Attr.Nlink <= 1 {
		return 1
	}
	for _, name := range g.t.index.Names(o.OID) {
		if c := g.o.Choose; c != nil {
			up, err := g.t.PathOf(name.Parent)
			if err != nil || !c.keeps(strings.TrimPrefix(up+"/"+name.Name, "/"), o.Attr.Mode, o.Attr.Size) {
				continue
			}
		}
		if holds(name) {
			n++
		}
	}
	return max(n, 1)
}

// sumXattrs is the hash of extended attributes, whatever their order.
func sumXattrs(xs []kml.Xattr, user bool) (s Sum) {
	xs = slices.DeleteFunc(slices.Clone(xs), func(x kml.Xattr) bool {
		return user && !strings.HasPrefix(x.Name, "user.") && !strings.HasPrefix(x.Name, "system.posix_acl")
	})
	if len(xs) == 0 {
		return s
	}
	slices.SortFunc(xs, func(a, b kml.Xattr) int { return strings.Compare(a.Name, b.Name) })
	var b []byte
	for _, x := range xs {
		b = append(binary.LittleEndian.AppendUint32(b, uint32(len(x.Name))), x.Name...)
		b = append(binary.LittleEndian.AppendUint32(b, uint32(len(x.Value))), x.Value...)
	}
	return blake3.Sum256(b)
}

// onDisk is entry on a replica.
func (g *digester) onDisk(n Name, path string) (*DigestEntry, error) {
	r := g.t.replica
	fd, name := g.t.rootfd, "."
	if n.Parent != 0 {
		ref, err := r.folder(n.Parent)
		if err != nil {
			return nil, ignore(err, errNoFolder)
		}
		defer ref.release()
		fd, name = ref.fd, n.Name
	}
	p, st, h, err := lookAtName(fd, name)
	if err != nil {
		return nil, ignore(err, syscall.ENOENT)
	}
	defer unix.Close(p.fd)
	if st.Dev_major != g.t.dev[0] || st.Dev_minor != g.t.dev[1] {
		return nil, nil // another file system is mounted here
	}
	a := kmlAttr(&st)
	e := &DigestEntry{Name: n.Name, Mode: a.Mode, UID: a.UID, GID: a.GID, Mtime: a.Mtime, Nlink: 1}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Size = a.Size
	case unix.S_IFBLK, unix.S_IFCHR:
		e.Rdev = a.Rdev
	case unix.S_IFLNK:
		if e.Target, err = readlinkFd(p.fd); err != nil {
			return nil, err
		}
	}
	if !g.o.Choose.keeps(path, e.Mode, e.Size) && n.Parent != 0 {
		return nil, nil
	}
	xs, err := p.xattrs()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	e.Xattrs = sumXattrs(xs, g.o.UserXattrs)
	oid := kml.RootOID
	if n.Parent != 0 {
		oid, _, _ = g.t.index.Child(n.Parent, n.Name)
	}
	o, err := g.t.index.Get(oid)
	if err != nil {
		return e, ignore(err, ErrNotFound)
	}
	if e.IsDir() != (o.Attr.Mode&unix.S_IFMT == unix.S_IFDIR) || e.IsDir() && oid != kml.RootOID && string(h) != string(o.Handle) {
		return e, nil // not what the index means
	}
	e.OID, e.Version, e.DataVersion = o.OID, o.Version, o.DataVersion
	e.Busy = !e.IsDir() && lacking(o)
	e.UID, e.GID = r.asMaster(o.Attr, e.UID, e.GID)
	e.Nlink = g.links(o, func(n Name) bool {
		ref, err := r.folder(n.Parent)
		if err != nil {
			return false
		}
		defer ref.release()
		got, err := HandleAt(ref.fd, n.Name)
		return err == nil && string(got) == string(h)
	})
	return e, nil
}

// asMaster is what the master calls owners here: what they should be is the
// master's own, anything else stays and is not the master's.
func (r *Replica) asMaster(a kml.Attr, uid, gid uint32) (uint32, uint32) {
	word := func(master, should, is uint32) uint32 {
		switch {
		case is == should:
			return master
		case is == master && r.t.root:
			return math.MaxUint32
		}
		return is
	}
	u, g := r.ownerHere(a)
	return word(a.UID, u, uid), word(a.GID, g, gid)
}

// contents hashes a file's bytes. What cannot be read in one version is busy.
func (g *digester) contents(n Name, e *DigestEntry) {
	if e.Mode&unix.S_IFMT != unix.S_IFREG || e.Busy {
		return
	}
	var err error
	if g.t.replica != nil {
		err = g.bytesOnDisk(n, e)
	} else {
		err = g.bytesOfVersion(e)
	}
	e.Busy = err != nil
	if err != nil && g.ctx.Err() == nil && !errors.Is(err, syscall.ESTALE) && !errors.Is(err, syscall.ENOENT) {
		g.t.logger.Warn("a file could not be read to compare it", "fileset", g.t.dir, "oid", e.OID, "name", n.Name, "err", err)
	}
}

func (g *digester) bytesOnDisk(n Name, e *DigestEntry) error {
	ref, err := g.t.replica.folder(n.Parent)
	if err != nil {
		return err
	}
	defer ref.release()
	fd, err := unix.Openat(ref.fd, n.Name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), n.Name)
	defer f.Close()
	e.Content, err = g.hash(f, e.Size)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return syscall.ESTALE
	}
	return err
}

// digestReader reads a version from its beginning.
type digestReader struct {
	ctx context.Context
	v   *VersionHandle
	off int64
}

func (r *digestReader) Read(p []byte) (int, error) {
	n, err := r.v.ReadAt(r.ctx, p, r.off)
	r.off += int64(n)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

func (g *digester) bytesOfVersion(e *DigestEntry) error {
	for range 3 {
		v, err := g.t.OpenVersion(g.ctx, e.OID)
		if err != nil {
			return err
		}
		sum, err := g.hash(&digestReader{ctx: g.ctx, v: v}, v.attr.Size)
		o, gone := g.t.index.Get(e.OID)
		_ = v.Close()
		if gone != nil {
			return syscall.ESTALE
		}
		if err == nil && uint64(o.DataVersion) == v.attr.DataVersion {
			now := entryOf(o, e.Name)
			now.Xattrs, now.Nlink, now.Content = e.Xattrs, e.Nlink, sum
			*e = *now
			return nil
		}
		if err != nil && !errors.Is(err, syscall.ESTALE) {
			return err
		}
	}
	return syscall.ESTALE
}

// hash hashes all of a file, which has to have that size.
func (g *digester) hash(f io.Reader, size uint64) (s Sum, err error) {
	buf, _ := g.bufs.Get().(*[]byte)
	if buf == nil {
		buf = new([]byte)
		*buf = make([]byte, 128<<10)
	}
	defer g.bufs.Put(buf)
	h := blake3.New()
	var all uint64
	for {
		if err := g.ctx.Err(); err != nil {
			return s, err
		}
		n, err := f.Read(*buf)
		_, _ = h.Write((*buf)[:n])
		all += uint64(n)
		g.bytes.Add(int64(n))
		if err == io.EOF || all > size {
			break
		}
		if err != nil {
			return s, err
		}
	}
	if all != size {
		return s, io.ErrUnexpectedEOF
	}
	h.Sum(s[:0])
	return s, nil
}
