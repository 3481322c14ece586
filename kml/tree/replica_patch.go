package tree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/internal/node"
	"github.com/mezzofs/mezzo/kml"
)

// Patch is what makes the file of an object in the directory another version of
// it, where it lies: for large files of a file system that cannot share blocks.
// It is a file in the stage, and from the moment it is whole an intent: what a
// kill leaves half done is done again from it.
//
//	0   "MZPT", u32 version
//	8   u64 oid                  16  u64 version of the contents: a position
//	24  u64 size                 32  i64 mtime, ns
//	40  u32 number of extents    44  u32 length of the handle
//	48  u32 CRC-32C of the 48 bytes before, the handle and the extents
//	52  handle of the file, extents of u64 offset and u64 length, their bytes
type Patch struct {
	f       *os.File
	stage   string // the folder
	name    string
	oid     kml.OID
	version kml.Position
	size    uint64
	mtime   int64
	handle  []byte
	extents []kml.Extent
	ready   bool
}

const (
	patchMagic   = "MZPT"
	patchVersion = 1
	patchHead    = 52
	// PatchMin is the size of the smallest file that is patched where it lies, in
	// bytes; smaller ones are replaced whole.
	PatchMin = 64 << 20

	patchPart  = ".part"
	patchWhole = ".patch"
)

// NewPatch begins a patch that makes an object the given version of it, of that
// size, which differs from what is here in the extents. ok is false when the file
// is not to be patched: it is small, was written to here, or must be replaced
// whole. The caller closes the patch.
func (r *Replica) NewPatch(oid kml.OID, version kml.Position, size uint64, extents []kml.Extent) (p *Patch, ok bool, err error) {
	o, err := r.t.index.Get(oid)
	if err != nil || r.wholeOnly || len(o.Handle) == 0 || o.Fp.Size < PatchMin || size < PatchMin {
		return nil, false, ignore(err, ErrNotFound)
	}
	f, err := r.OpenHere(oid, true)
	if err != nil { // a program that runs, or a file that its owner may not write
		return nil, false, nil
	}
	defer f.Close()
	if !untouched(int(f.Fd()), o) {
		return nil, false, nil
	}
	p = &Patch{stage: r.t.Stage(), name: fmt.Sprintf("%016x.%016x", uint64(oid), uint64(version)), oid: oid, version: version,
		size: size, handle: o.Handle, extents: extents}
	p.f, err = os.OpenFile(p.path(patchPart), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	return p, err == nil, err
}

// patches reports whether a file may be patched where it lies.
func (r *Replica) patches(fd int) bool {
	var st unix.Stat_t
	return !r.wholeOnly && unix.Fstat(fd, &st) == nil && st.Size >= PatchMin
}

// untouched reports whether a file is what the replica left there.
func untouched(fd int, o *Object) bool {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, statxMask, &st)
	return err == nil && st.Size == o.Fp.Size && nsOf(st.Mtime) == o.Fp.Mtime
}

// untouched reports whether the file in the directory is what the replica left.
func (r *Replica) untouched(o *Object) bool {
	fd, _, err := r.openObject(o)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return untouched(fd, o)
}

func (p *Patch) path(kind string) string { return filepath.Join(p.stage, p.name+kind) }

// Name is what Brought.Staged is to say.
func (p *Patch) Name() string { return p.name }

// Close closes the patch. One that is ready stays until it is applied.
func (p *Patch) Close() error {
	err := p.f.Close()
	if !p.ready {
		_ = os.Remove(p.path(patchPart))
	}
	return err
}

// data is where the bytes of the first extent stand.
func (p *Patch) data() int64 { return int64(patchHead + len(p.handle) + 16*len(p.extents)) }

// WriteAt puts bytes into the patch that belong at an offset of the file, within
// one of the extents.
func (p *Patch) WriteAt(b []byte, off int64) (int, error) {
	at := p.data()
	for _, e := range p.extents {
		if uint64(off) >= e.Off && uint64(off)+uint64(len(b)) <= e.Off+e.Len {
			return p.f.WriteAt(b, at+off-int64(e.Off))
		}
		at += int64(e.Len)
	}
	return 0, fmt.Errorf("%d bytes at %d: %w", len(b), off, syscall.EINVAL)
}

// head is the bytes before those of the extents.
func (p *Patch) head() []byte {
	le := binary.LittleEndian
	b := append([]byte(nil), patchMagic...)
	b = le.AppendUint32(b, patchVersion)
	b = le.AppendUint64(b, uint64(p.oid))
	b = le.AppendUint64(b, uint64(p.version))
	b = le.AppendUint64(b, p.size)
	b = le.AppendUint64(b, uint64(p.mtime))
	b = le.AppendUint32(b, uint32(len(p.extents)))
	b = le.AppendUint32(b, uint32(len(p.handle)))
	rest := append([]byte(nil), p.handle...)
	for _, e := range p.extents {
		rest = le.AppendUint64(le.AppendUint64(rest, e.Off), e.Len)
	}
	b = le.AppendUint32(b, crc32.Update(crc32.Checksum(b, castagnoli), castagnoli, rest))
	return append(b, rest...)
}

var errPatch = errors.New("not a patch")

// readPatch opens one that is whole.
func readPatch(stage, name string) (*Patch, error) {
	f, err := os.Open(filepath.Join(stage, name))
	if err != nil {
		return nil, err
	}
	p := &Patch{f: f, stage: stage, name: strings.TrimSuffix(name, patchWhole), ready: true}
	if err := p.parse(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), f.Close())
	}
	return p, nil
}

func (p *Patch) parse() error {
	st, err := p.f.Stat()
	if err != nil {
		return err
	}
	b := make([]byte, patchHead)
	if _, err := p.f.ReadAt(b, 0); err != nil {
		return err
	}
	le := binary.LittleEndian
	n, h := int64(le.Uint32(b[40:])), int64(le.Uint32(b[44:]))
	if string(b[:4]) != patchMagic || patchHead+h+16*n > st.Size() {
		return errPatch
	}
	if v := le.Uint32(b[4:]); v != patchVersion {
		return fmt.Errorf("version %d: %w", v, kml.ErrNewer)
	}
	rest := make([]byte, h+16*n)
	if _, err := p.f.ReadAt(rest, patchHead); err != nil {
		return err
	}
	if crc32.Update(crc32.Checksum(b[:48], castagnoli), castagnoli, rest) != le.Uint32(b[48:]) {
		return errPatch
	}
	p.oid, p.version = kml.OID(le.Uint64(b[8:])), kml.Position(le.Uint64(b[16:]))
	p.size, p.mtime, p.handle = le.Uint64(b[24:]), int64(le.Uint64(b[32:])), rest[:h]
	for at := h; at < int64(len(rest)); at += 16 {
		p.extents = append(p.extents, kml.Extent{Off: le.Uint64(rest[at:]), Len: le.Uint64(rest[at+8:])})
	}
	return nil
}

// patchIn makes the file of an object what a patch says, which the caller drops
// when the index knows. The caller holds the object's lock. Our own doors read
// nothing meanwhile; others that read the file see some of both versions.
func (r *Replica) patchIn(o *Object, name string, a kml.Attr) (*inode, error) {
	f, err := os.OpenFile(filepath.Join(r.t.Stage(), name+patchPart), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	p := &Patch{f: f, stage: r.t.Stage(), name: name}
	defer p.Close() // from here on it is applied, or goes
	if err := p.parse(); err != nil {
		return nil, err
	}
	to, err := r.OpenHere(o.OID, true)
	if err != nil {
		return nil, err
	}
	defer to.Close()
	if string(p.handle) != string(o.Handle) || !untouched(int(to.Fd()), o) {
		return nil, fmt.Errorf("written here while a patch for it came: %w", syscall.ESTALE)
	}
	p.mtime = a.Mtime
	if _, err := f.WriteAt(p.head(), 0); err != nil {
		return nil, err
	}
	open := r.t.objects.acquire(o.OID)
	defer r.t.objects.release(open)
	open.mu.Lock()
	defer open.mu.Unlock()
	if err := os.Rename(p.path(patchPart), p.path(patchWhole)); err != nil {
		return nil, err
	}
	fault.Point("replica.patch")
	open.writes.Add(1)
	r.patched.Add(1)
	return p.apply(to)
}

// Ready ends the writing of a patch.
func (p *Patch) Ready() error {
	_, err := p.f.WriteAt(p.head(), 0)
	p.ready = err == nil
	return err
}

// apply writes a patch into the file it is for. It may be done again.
func (p *Patch) apply(to *os.File) (*inode, error) {
	fd := int(to.Fd())
	at := p.data()
	buf := make([]byte, 1<<20)
	for _, e := range p.extents {
		for off := e.Off; off < e.Off+e.Len; {
			b := buf[:min(uint64(len(buf)), e.Off+e.Len-off)]
			if n, err := p.f.ReadAt(b, at); err != nil && n < len(b) {
				return nil, err
			}
			if _, err := pwriteFull(fd, b, int64(off)); err != nil {
				return nil, err
			}
			off, at = off+uint64(len(b)), at+int64(len(b))
			fault.Point("replica.patching")
		}
	}
	if err := unix.Ftruncate(fd, int64(p.size)); err != nil {
		return nil, err
	}
	if err := node.SetTimes(node.At{FD: fd}, kml.Attr{Mtime: p.mtime}, kml.MaskMtime); err != nil {
		return nil, err
	}
	fault.Point("replica.patched")
	return inodeOf(fd)
}

// dropPatch forgets a patch that the index knows of.
func (r *Replica) dropPatch(name string) {
	_ = unix.Unlinkat(r.stage, name+patchWhole, 0)
}

// finishPatches does again what a kill left half done, before anybody looks.
func (r *Replica) finishPatches() error {
	es, err := os.ReadDir(r.t.Stage())
	if err != nil {
		return err
	}
	for _, e := range es {
		switch {
		case strings.HasSuffix(e.Name(), patchPart):
			err = unix.Unlinkat(r.stage, e.Name(), 0)
		case strings.HasSuffix(e.Name(), patchWhole):
			if err = r.finishPatch(e.Name()); err == nil {
				err = unix.Unlinkat(r.stage, e.Name(), 0)
			}
		}
		if err != nil {
			return fmt.Errorf("patch %s: %w", e.Name(), err)
		}
	}
	return nil
}

func (r *Replica) finishPatch(name string) error {
	p, err := readPatch(r.t.Stage(), name)
	if err != nil {
		return err
	}
	defer p.Close()
	o, err := r.t.index.Get(p.oid)
	if err != nil || string(o.Handle) != string(p.handle) {
		return ignore(err, ErrNotFound) // gone, or another inode by now
	}
	to, err := r.OpenHere(p.oid, true)
	if err != nil {
		return ignore(err, syscall.ENOENT)
	}
	defer to.Close()
	if h, err := HandleAt(int(to.Fd()), ""); err != nil || string(h) != string(p.handle) {
		return err
	}
	in, err := p.apply(to)
	if err != nil {
		return err
	}
	r.dirty.Store(true)
	c := change{oid: p.oid, inode: in, lacks: p.version != o.DataVersion}
	return r.t.index.Update(c.note)
}
