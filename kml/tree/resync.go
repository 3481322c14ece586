package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
)

// A sync that failed is told once: the kernel marks the pages that it could not
// write clean, and the next fsync(2) of them succeeds though they are in memory
// alone ("fsyncgate"). So after one no commit is made before every file that the
// log tells of since the last was compared with what is on the disk, and written
// again where it differs.

// synced passes on the outcome of a sync, and remembers a failure.
func (t *Tree) synced(err error) error {
	if err == nil {
		err = fault.Err("tree.sync")
	}
	if err != nil && t.unsure.CompareAndSwap(false, true) {
		t.logger.Error("a sync failed; nothing is promised to be durable until what it should have written was checked", "fileset", t.dir, "err", err)
	}
	return err
}

// recheck makes sure, after a sync that failed, that the disk has, or will be
// given, what the files hold. The caller holds cmu.
func (t *Tree) recheck(ctx context.Context) error {
	if !t.unsure.Load() {
		return nil
	}
	oids, err := t.changedSince(t.log.Durable())
	if err != nil {
		return err
	}
	// A failure while this goes on counts again.
	t.unsure.Store(false)
	for oid := range oids {
		if err = ctx.Err(); err == nil {
			err = t.recheckFile(ctx, oid)
		}
		if err != nil {
			t.unsure.Store(true)
			return fmt.Errorf("a sync failed, and object %v is not on the disk: %w", oid, err)
		}
	}
	t.jmu.Lock()
	t.fresh = unsynced{all: true}
	t.jmu.Unlock()
	t.logger.Warn("what a failed sync should have written is on its way again", "fileset", t.dir, "files", len(oids))
	return nil
}

// changedSince is the files with records behind a position, and those that are
// open-dirty.
func (t *Tree) changedSince(p kml.Position) (map[kml.OID]bool, error) {
	oids := make(map[kml.OID]bool)
	rd, err := t.log.ReaderAfter(p)
	if err != nil {
		return nil, err
	}
	defer rd.Close()
	for {
		r, err := rd.TryNext()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if r.OID != 0 && r.Op != kml.OpMark {
			oids[r.OID] = true
		}
	}
	for _, o := range t.objects.dirtyList() {
		oids[o.oid] = true
		t.objects.release(o)
	}
	return oids, nil
}

// recheckFile compares a file as the page cache has it with the disk, and writes
// again what differs. Its times stay. Nobody writes to it through the tree
// meanwhile.
func (t *Tree) recheckFile(ctx context.Context, oid kml.OID) error {
	o := t.objects.acquire(oid)
	defer t.objects.release(o)
	o.mu.Lock()
	defer o.mu.Unlock()
	p, err := t.open(ctx, oid)
	if err != nil {
		return nil // it is gone, as its folder tells
	}
	defer unix.Close(p.fd)
	var st unix.Statx_t
	if err := statAt(p.fd, "", &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return err
	}
	fd, err := unix.Open(p.path(), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// Without a look past the cache all of it is written again.
	raw, err := unix.Open(p.path(), unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		raw = -1
	} else {
		defer unix.Close(raw)
	}
	wrote, err := rewriteLost(ctx, fd, raw, int64(st.Size))
	if wrote && err == nil {
		err = p.utimes(utimeOmit, nsOf(st.Mtime))
	}
	return err
}

// rewriteLost writes what fd reads and raw, which reads the disk, does not.
func rewriteLost(ctx context.Context, fd, raw int, size int64) (wrote bool, err error) {
	const piece = 1 << 20
	mem, disk := make([]byte, piece), aligned(piece)
	for off := int64(0); off < size; off += piece {
		if err := ctx.Err(); err != nil {
			return wrote, err
		}
		n, err := preadFull(fd, mem, off)
		if err != nil {
			return wrote, err
		}
		if raw >= 0 {
			m, err := unix.Pread(raw, disk, off) // writes dirty pages first
			if err != nil && err != unix.EINVAL {
				return wrote, err
			}
			if err == nil && bytes.Equal(mem[:n], disk[:m]) {
				continue
			}
		}
		wrote = true
		if _, err := pwriteFull(fd, mem[:n], off); err != nil {
			return wrote, err
		}
	}
	return wrote, nil
}

// aligned is memory as O_DIRECT wants it.
func aligned(n int) []byte {
	const page = 4096
	b := make([]byte, n+page)
	skip := page - int(uintptr(unsafe.Pointer(&b[0]))%page)
	return b[skip : skip+n]
}
