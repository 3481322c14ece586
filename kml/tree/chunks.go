package tree

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/chunks"
)

// ChunksMin is the size of the smallest file, in bytes, of which a changed
// version is compared by chunks.
const ChunksMin = 1 << 20

// chunkCache keeps the hash trees of large files, one of each, in the state
// folder: with what the log says was changed since, a newer one costs a look at
// that alone. What it has is of this run of the machine.
//
// A file holds the tree in the form of package chunks, then
//
//	0   i64 mtime of the file, ns    8   u64 inode number
//	16  zeros                        28  u32 CRC-32C of all before
type chunkCache struct {
	t    *Tree
	once sync.Once
	dir  string // empty: nothing is kept

	mu   sync.Mutex
	busy map[kml.OID]chan struct{} // closed when who is at it is done
	size int64                     // of all files, about
}

const (
	chunksDir   = "chunks"
	chunksTail  = 32
	chunksQuota = 2 << 30 // bytes of trees that are kept: those of about 1 TB of files
)

// keptChunks is a hash tree with what it is of.
type keptChunks struct {
	tree    *chunks.Tree
	version kml.Position // of the contents; 0: not known
	mtime   int64        // of the file when it was read
	ino     uint64
}

// open makes the folder; what is there of another run of the machine, or of
// another place, goes.
func (c *chunkCache) open() {
	c.once.Do(func() {
		dir := c.t.state.Path(chunksDir)
		h, err := HandleAt(c.t.rootfd, "")
		if err != nil {
			return
		}
		now := c.t.opt.Boot.ID + " " + base64.StdEncoding.EncodeToString(h)
		mark := filepath.Join(dir, "run")
		if b, err := os.ReadFile(mark); err != nil || string(b) != now {
			if os.RemoveAll(dir) != nil || os.Mkdir(dir, 0o700) != nil || os.WriteFile(mark, []byte(now), 0o600) != nil {
				return
			}
		}
		c.dir = dir
	})
}

func (c *chunkCache) path(oid kml.OID) string {
	return filepath.Join(c.dir, fmt.Sprintf("%016x", uint64(oid)))
}

// lock has one at a time work on the tree of an object.
func (c *chunkCache) lock(ctx context.Context, oid kml.OID) (unlock func(), err error) {
	for {
		c.mu.Lock()
		wait := c.busy[oid]
		if wait == nil {
			if c.busy == nil {
				c.busy = make(map[kml.OID]chan struct{})
			}
			mine := make(chan struct{})
			c.busy[oid] = mine
			c.mu.Unlock()
			return func() {
				c.mu.Lock()
				delete(c.busy, oid)
				c.mu.Unlock()
				close(mine)
			}, nil
		}
		c.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// get is what is kept of an object, or nil.
func (c *chunkCache) get(oid kml.OID) *keptChunks {
	if c.open(); c.dir == "" {
		return nil
	}
	b, err := os.ReadFile(c.path(oid))
	if err != nil || len(b) < chunksTail {
		return nil
	}
	le := binary.LittleEndian
	tail := b[len(b)-chunksTail:]
	if crc32.Checksum(b[:len(b)-4], castagnoli) != le.Uint32(tail[28:]) {
		return nil
	}
	t, v, err := chunks.Parse(b[:len(b)-chunksTail])
	if err != nil {
		return nil
	}
	return &keptChunks{tree: t, version: v, mtime: int64(le.Uint64(tail)), ino: le.Uint64(tail[8:])}
}

// put keeps a tree. That it cannot be kept is no error: it is made again.
func (c *chunkCache) put(oid kml.OID, k *keptChunks) {
	if c.open(); c.dir == "" {
		return
	}
	n := chunks.EncodedLen(k.tree.Len())
	b := make([]byte, n, n+chunksTail)
	k.tree.ReadAt(b, 0, k.version)
	le := binary.LittleEndian
	b = le.AppendUint64(b, uint64(k.mtime))
	b = le.AppendUint64(b, k.ino)
	b = append(b, make([]byte, 12)...)
	b = le.AppendUint32(b, crc32.Checksum(b, castagnoli))
	tmp := c.path(oid) + ".new"
	err := os.WriteFile(tmp, b, 0o600)
	if err == nil {
		err = os.Rename(tmp, c.path(oid))
	}
	if err != nil {
		_ = os.Remove(tmp)
		c.t.logger.Debug("hashes of a file's chunks are not kept", "oid", oid, "err", err)
		return
	}
	c.mu.Lock()
	full := c.size == 0 || c.size > chunksQuota
	c.size += int64(len(b))
	c.mu.Unlock()
	if full {
		c.sweep()
	}
}

// drop forgets what is kept of an object.
func (c *chunkCache) drop(oid kml.OID) {
	if c.open(); c.dir != "" {
		_ = os.Remove(c.path(oid))
	}
}

// sweep drops the trees of what is gone, and the oldest when all together are
// too much.
func (c *chunkCache) sweep() {
	es, err := os.ReadDir(c.dir)
	if err != nil {
		return
	}
	type kept struct {
		path string
		size int64
		when time.Time
	}
	var list []kept
	size := int64(1)
	for _, e := range es {
		oid, bad := strconv.ParseUint(e.Name(), 16, 64)
		st, err := e.Info()
		if bad != nil || err != nil {
			continue
		}
		k := kept{filepath.Join(c.dir, e.Name()), st.Size(), st.ModTime()}
		if _, err := c.t.index.Get(kml.OID(oid)); errors.Is(err, ErrNotFound) {
			_ = os.Remove(k.path)
			continue
		}
		list, size = append(list, k), size+k.size
	}
	slices.SortFunc(list, func(a, b kept) int { return a.when.Compare(b.when) })
	for _, k := range list {
		if size <= chunksQuota {
			break
		}
		if os.Remove(k.path) == nil {
			size -= k.size
		}
	}
	c.mu.Lock()
	c.size = size
	c.mu.Unlock()
}

// storesSince calls f for each store of an object behind a position, in the log's
// order. ok is false when the log does not tell them all, or takes longer to read
// than a file of that size.
func (t *Tree) storesSince(ctx context.Context, oid kml.OID, from kml.Position, size uint64, f func(*kml.Record)) (ok bool) {
	end := t.log.End()
	if from == 0 || from.Epoch() != end.Epoch() || end.Recno()-from.Recno() > size>>10 {
		return false
	}
	rd, err := t.log.ReaderAfter(from)
	if err != nil {
		return false
	}
	defer rd.Close()
	for n := 0; n%1024 != 0 || ctx.Err() == nil; n++ {
		r, err := rd.TryNext()
		if errors.Is(err, io.EOF) {
			return true
		}
		if err != nil {
			return false
		}
		if r.OID == oid && r.Op == kml.OpStore {
			f(r)
		}
	}
	return false
}

// storeSum gathers where stores that follow each other changed a file.
type storeSum struct {
	set  extentSet
	size uint64 // of the file, after the last
	bad  bool   // one of them does not say
}

func (c *storeSum) add(r *kml.Record) {
	c.bad = c.bad || r.Extents == nil
	for _, e := range r.Extents {
		c.set.add(e.Off, e.Len)
	}
	if lo, hi := min(c.size, r.Attr.Size), max(c.size, r.Attr.Size); lo < hi {
		c.set.add(lo, hi-lo)
	}
	c.size = r.Attr.Size
}

// Chunks is the hash tree of the version that v reads. It may take as long as
// reading all of it, and then is kept; ESTALE when the version cannot be had any
// more.
func (t *Tree) Chunks(ctx context.Context, v *VersionHandle) (*chunks.Tree, error) {
	oid, version := v.obj.oid, kml.Position(v.attr.DataVersion)
	unlock, err := t.chunks.lock(ctx, oid)
	if err != nil {
		return nil, err
	}
	defer unlock()
	k := t.chunks.get(oid)
	if k != nil && k.version == version && k.tree.Len() == v.attr.Size {
		return k.tree, nil
	}
	var x *chunks.Tree
	if k != nil && k.version < version {
		c := storeSum{size: k.tree.Len()}
		ok := t.storesSince(ctx, oid, k.version, v.attr.Size, func(r *kml.Record) {
			if r.Pos <= version {
				c.add(r)
			}
		})
		if ok && !c.bad && c.size == v.attr.Size {
			if x, err = k.tree.Update(ctx, v, v.attr.Size, c.set.list); err != nil {
				return nil, err
			}
		}
	}
	if x == nil {
		if x, err = chunks.Make(ctx, v, v.attr.Size); err != nil {
			return nil, err
		}
	}
	t.chunks.put(oid, &keptChunks{tree: x, version: version})
	return x, nil
}

// ChunksHere is the hash tree of the file that is in the directory for an object,
// whatever version that is; f is open on it. It may take as long as reading all
// of it.
func (r *Replica) ChunksHere(ctx context.Context, oid kml.OID, f *os.File) (*chunks.Tree, error) {
	t := r.t
	unlock, err := t.chunks.lock(ctx, oid)
	if err != nil {
		return nil, err
	}
	defer unlock()
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, statxMask, &st); err != nil {
		return nil, err
	}
	k := t.chunks.get(oid)
	if k != nil && k.tree.Len() == st.Size && k.mtime == nsOf(st.Mtime) && k.ino == st.Ino {
		return k.tree, nil
	}
	file := chunks.Plain{ReaderAt: f}
	if k != nil && k.version != 0 {
		// What lies here is what some store left: the last that left a file of its
		// size and time. All that was changed up to there is looked at.
		all, here := storeSum{size: k.tree.Len()}, (*storeSum)(nil)
		ok := t.storesSince(ctx, oid, k.version, st.Size, func(rec *kml.Record) {
			all.add(rec)
			if rec.Attr.Size == st.Size && rec.Attr.Mtime == nsOf(st.Mtime) && !all.bad {
				here = &storeSum{set: extentSet{append([]kml.Extent(nil), all.set.list...)}}
			}
		})
		if ok && here != nil {
			return k.tree.Update(ctx, file, st.Size, here.set.list)
		}
	}
	x, err := chunks.Make(ctx, file, st.Size)
	if err == nil {
		t.chunks.put(oid, &keptChunks{tree: x, mtime: nsOf(st.Mtime), ino: st.Ino})
	}
	return x, err
}

// KeepChunks keeps the hash tree of a version of an object, when that is what the
// directory has by now.
func (r *Replica) KeepChunks(oid kml.OID, x *chunks.Tree, version kml.Position) {
	o, err := r.t.index.Get(oid)
	if err == nil && o.Whole && o.DataVersion == version && o.Attr.Size == x.Len() {
		r.t.chunks.put(oid, &keptChunks{tree: x, version: version, mtime: o.Fp.Mtime, ino: o.Ino})
	}
}
