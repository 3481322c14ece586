package tree

import (
	"context"
	"errors"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
)

// chunkSize is the unit in which contents are fetched; aheadChunks is how many
// are asked for ahead of a sequential reader, parallelFetch how many at a time.
const (
	chunkSize     = 1 << 20
	aheadChunks   = 4
	parallelFetch = 8
)

// versionFile is the file of one version of an object's contents: what of it
// is here, and what brings the rest. Presence is set after the data, in memory
// and then in the index. Handles that opened it keep it when a newer version
// comes.
type versionFile struct {
	c       *Cache
	oid     kml.OID
	version kml.Position
	size    uint64
	path    string

	ctx    context.Context // ends with the last user: fetches belong to no single reader
	cancel context.CancelFunc
	wg     sync.WaitGroup
	slots  chan struct{} // fetches at a time
	srcmu  sync.Mutex    // opening the source
	src    Source
	past   []Source // failed; others may still be reading from them

	mu       sync.Mutex
	refs     int
	fd       int
	whole    bool
	dropped  bool   // a newer version is here
	have     []bool // by chunk
	missing  int    // chunks that are not here
	noted    int    // chunks since presence went to the index
	inflight map[uint64]*chunk
	next     uint64 // where a sequential reader goes on
}

type chunk struct {
	done chan struct{}
	err  error
}

// current is the file of o's present version, with a reference for the caller.
// It is nil when o's bytes are local ones.
func (c *Cache) current(o *cacheObject) (*versionFile, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.local {
		return nil, nil
	}
	obj, err := c.known(o)
	if err != nil {
		return nil, err
	}
	if o.vf != nil && o.vf.version == obj.DataVersion {
		o.vf.retain()
		return o.vf, nil
	}
	if o.vf != nil {
		o.vf.release()
		o.vf = nil
	}
	vf, err := c.openVersionFile(obj)
	if err != nil {
		return nil, err
	}
	o.vf = vf
	vf.retain()
	return vf, nil
}

// openVersionFile opens or makes the file of obj's version.
func (c *Cache) openVersionFile(obj *Object) (*versionFile, error) {
	vf := &versionFile{c: c, oid: obj.OID, version: obj.DataVersion, size: obj.Attr.Size, refs: 1, fd: -1,
		path: c.objectPath(obj.OID, obj.DataVersion), slots: make(chan struct{}, parallelFetch), inflight: make(map[uint64]*chunk)}
	fd, err := openObjectFile(vf.path, unix.O_RDWR)
	if err == nil {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err == nil && uint64(st.Size) == vf.size {
			vf.has(obj)
		} else {
			unix.Close(fd)
			fd = -1
		}
	}
	if fd < 0 || err != nil {
		// The index hears of it first: the new file would be taken for the old.
		if obj.Whole && vf.size > 0 || len(obj.Present) > 0 {
			x := c.index.Load()
			if err := errors.Join(x.Update(func(b *Batch) error { return b.forgetBytes(obj.OID) }), x.Flush()); err != nil {
				return nil, err
			}
		}
		if fd, err = openObjectFile(vf.path, unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC); err != nil {
			return nil, err
		}
		if err := unix.Ftruncate(fd, int64(vf.size)); err != nil {
			unix.Close(fd)
			return nil, err
		}
		vf.has(&Object{})
	}
	vf.fd = fd
	vf.ctx, vf.cancel = context.WithCancel(c.ctx)
	return vf, nil
}

func (vf *versionFile) retain() {
	vf.mu.Lock()
	vf.refs++
	vf.mu.Unlock()
}

// release gives a reference back; the last one ends fetches and notes what is
// present.
func (vf *versionFile) release() {
	vf.mu.Lock()
	vf.refs--
	last := vf.refs == 0
	vf.mu.Unlock()
	if !last {
		return
	}
	vf.cancel()
	if vf.idle() {
		vf.end()
		return
	}
	vf.c.wg.Go(vf.end) // a request is on its way; whoever lets go need not wait
}

func (vf *versionFile) idle() bool {
	vf.mu.Lock()
	defer vf.mu.Unlock()
	return len(vf.inflight) == 0
}

func (vf *versionFile) end() {
	vf.wg.Wait()
	for _, src := range append(vf.past, vf.src) {
		if src != nil {
			src.Close()
		}
	}
	unix.Close(vf.fd)
	vf.mu.Lock()
	note := vf.noted > 0 && !vf.whole && !vf.dropped
	vf.mu.Unlock()
	if note {
		vf.note()
	}
}

// has takes up what the index says is present.
func (vf *versionFile) has(obj *Object) {
	n := int((vf.size + chunkSize - 1) / chunkSize)
	vf.whole = obj.Whole || n == 0
	vf.have, vf.missing = make([]bool, n), n
	if vf.whole {
		vf.missing = 0
		return
	}
	for _, e := range obj.Present {
		for at := (e.Off + chunkSize - 1) / chunkSize; at < uint64(n) && min((at+1)*chunkSize, vf.size) <= e.Off+e.Len; at++ {
			if !vf.have[at] {
				vf.have[at] = true
				vf.missing--
			}
		}
	}
	vf.whole = vf.missing == 0
}

// extents is what is present, as the index keeps it.
func (vf *versionFile) extents() []kml.Extent {
	var out []kml.Extent
	for at, here := range vf.have {
		if !here {
			continue
		}
		off := uint64(at) * chunkSize
		n := min(chunkSize, vf.size-off)
		if k := len(out); k > 0 && out[k-1].Off+out[k-1].Len == off {
			out[k-1].Len += n
		} else {
			out = append(out, kml.Extent{Off: off, Len: n})
		}
	}
	return out
}

// complete is true once every byte is here.
func (vf *versionFile) complete() bool {
	vf.mu.Lock()
	defer vf.mu.Unlock()
	return vf.whole
}

// ensure returns when [off, off+n) is here. ESTALE: the version is gone at the
// master.
func (vf *versionFile) ensure(ctx context.Context, off, n uint64) error {
	if off >= vf.size || n == 0 {
		return nil
	}
	end := min(off+n, vf.size)
	vf.mu.Lock()
	if vf.whole {
		vf.mu.Unlock()
		return nil
	}
	var wait []*chunk
	for at := off / chunkSize; at*chunkSize < end; at++ {
		if k := vf.startLocked(at); k != nil {
			wait = append(wait, k)
		}
	}
	if off == vf.next && off > 0 {
		at := (end + chunkSize - 1) / chunkSize
		for i := range uint64(aheadChunks) {
			if (at+i)*chunkSize < vf.size {
				vf.startLocked(at + i)
			}
		}
	}
	vf.next = end
	vf.mu.Unlock()
	for _, k := range wait {
		select {
		case <-k.done:
			if k.err != nil {
				return k.err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// startLocked fetches a chunk unless it is here; it joins a fetch that runs.
func (vf *versionFile) startLocked(at uint64) *chunk {
	if vf.have[at] {
		return nil
	}
	if k := vf.inflight[at]; k != nil {
		return k
	}
	k := &chunk{done: make(chan struct{})}
	vf.inflight[at] = k
	vf.wg.Go(func() {
		select {
		case vf.slots <- struct{}{}:
			k.err = vf.fetch(at)
			<-vf.slots
		case <-vf.ctx.Done():
			k.err = vf.ctx.Err()
		}
		vf.landed(at, k)
	})
	return k
}

// fetch brings one chunk. Blocks of zeros stay holes.
func (vf *versionFile) fetch(at uint64) error {
	src, err := vf.source()
	if err != nil {
		return err
	}
	buf := make([]byte, min(chunkSize, vf.size-at*chunkSize))
	n, err := src.ReadAt(vf.ctx, buf, int64(at*chunkSize))
	if err == nil && n < len(buf) {
		err = syscall.ESTALE // a version does not change its size
	}
	if err != nil {
		vf.lose(src)
		return err
	}
	const block = 64 << 10
	for o := 0; o < len(buf); o += block {
		b := buf[o:min(o+block, len(buf))]
		if allZero(b) {
			continue
		}
		if _, err := pwriteFull(vf.fd, b, int64(at*chunkSize)+int64(o)); err != nil {
			return err
		}
	}
	fault.Point("cache.data")
	return nil
}

func allZero(b []byte) bool {
	for len(b) >= 8 {
		if b[0]|b[1]|b[2]|b[3]|b[4]|b[5]|b[6]|b[7] != 0 {
			return false
		}
		b = b[8:]
	}
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

// noteEvery is after how many chunks of a large file its presence goes to the
// index.
const noteEvery = 64

// landed ends a fetch; presence follows the data.
func (vf *versionFile) landed(at uint64, k *chunk) {
	vf.mu.Lock()
	delete(vf.inflight, at)
	note := false
	if k.err == nil {
		vf.have[at] = true
		vf.missing--
		vf.whole = vf.missing == 0
		vf.noted++
		note = (vf.whole || vf.noted >= noteEvery) && !vf.dropped
		if note {
			vf.noted = 0
		}
	}
	vf.mu.Unlock()
	if note {
		vf.note()
	}
	close(k.done)
}

// note writes presence into the index, unless the version is past.
func (vf *versionFile) note() {
	vf.mu.Lock()
	whole := vf.whole
	var present []kml.Extent
	if !whole {
		present = vf.extents()
	}
	vf.mu.Unlock()
	err := vf.c.index.Load().Update(func(b *Batch) error {
		obj, err := b.Get(vf.oid)
		if err != nil || obj.DataVersion != vf.version {
			return ignore(err, ErrNotFound)
		}
		n := *obj
		n.Whole, n.Present = whole, present
		return b.Put(&n)
	})
	if err != nil {
		vf.c.logger.Debug("presence not noted; it is fetched again after a restart", "oid", vf.oid, "err", err)
	}
}

// source is the version at the master, opened once. ESTALE when the master has
// another one by now.
func (vf *versionFile) source() (Source, error) {
	vf.srcmu.Lock()
	defer vf.srcmu.Unlock()
	if vf.src != nil {
		return vf.src, nil
	}
	src, err := vf.c.up.OpenVersion(vf.ctx, vf.oid)
	if err != nil {
		return nil, err
	}
	if src.Version() != vf.version || src.Size() != vf.size {
		err := &otherVersion{src.Version()}
		src.Close()
		return nil, err
	}
	vf.src = src
	return src, nil
}

// lose gives up a source that failed; the next fetch opens another.
func (vf *versionFile) lose(src Source) {
	vf.srcmu.Lock()
	defer vf.srcmu.Unlock()
	if vf.src == src {
		vf.src = nil
		vf.past = append(vf.past, src)
	}
}

// otherVersion is the ESTALE of a version that the master has replaced.
type otherVersion struct{ at kml.Position }

func (e *otherVersion) Error() string { return "the master has version " + e.at.String() }
func (e *otherVersion) Unwrap() error { return syscall.ESTALE }

// bringWhole brings all bytes of o's present version and says which that is.
// It returns at once when o is local.
func (c *Cache) bringWhole(ctx context.Context, o *cacheObject) (kml.Position, error) {
	for range maxCacheRetry {
		vf, err := c.current(o)
		if vf == nil || err != nil {
			return 0, err
		}
		err = vf.ensure(ctx, 0, vf.size)
		v := vf.version
		vf.release()
		if err == nil {
			return v, nil
		}
		if err := c.newer(ctx, v, err); err != nil {
			return 0, err
		}
	}
	return 0, syscall.ESTALE
}

// newer waits, after a fetch of version v failed because the master has a newer
// one, until that is known here. Any other error comes back.
func (c *Cache) newer(ctx context.Context, v kml.Position, err error) error {
	var other *otherVersion
	if errors.As(err, &other) {
		if other.at <= v {
			return err
		}
		return c.Reach(ctx, other.at)
	}
	if errors.Is(err, syscall.ESTALE) || errors.Is(err, context.Canceled) && ctx.Err() == nil {
		return nil // asked anew, the master says which version it has
	}
	return err
}

// dropVersion forgets the bytes of a version that is past: those who have it
// open keep them. The caller holds o.mu.
func (c *Cache) dropVersion(o *cacheObject, v kml.Position) {
	o.forget()
	_ = unix.Unlink(c.objectPath(o.oid, v))
}

// forget gives up the file of the present version; those who have it open keep
// it. The caller holds o.mu.
func (o *cacheObject) forget() {
	if o.vf == nil {
		return
	}
	o.vf.mu.Lock()
	o.vf.dropped = true
	o.vf.mu.Unlock()
	o.vf.release()
	o.vf = nil
}
