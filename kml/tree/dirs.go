package tree

import (
	"container/list"
	"errors"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// errMoved is a folder that is not where the index has it.
var errMoved = errors.New("folder has moved")

// dirCache keeps O_PATH descriptors of folders by oid, so that a name costs one
// step and not its whole path. A descriptor goes with its folder through
// renames. It may be used by many goroutines.
type dirCache struct {
	index *Index
	root  int
	max   int

	mu   sync.Mutex
	m    map[kml.OID]*dirRef
	used list.List // of *dirRef, least recently used first
}

// dirRef is a folder's descriptor while it is held.
type dirRef struct {
	fd    int
	oid   kml.OID
	cache *dirCache
	users int
	stale bool // no longer in the cache: closed with its last user
	elem  *list.Element
}

// busy is how many users' folders an eviction passes over before it gives up.
const busy = 64

func newDirCache(index *Index, rootfd, max int) *dirCache {
	if max <= 0 {
		max = 512
	}
	return &dirCache{index: index, root: rootfd, max: max, m: make(map[kml.OID]*dirRef)}
}

// get returns the folder's descriptor, to be released. A folder that is not
// known is ErrNotFound; one that is not where the index has it errMoved; an
// object that is no folder ENOTDIR.
func (c *dirCache) get(oid kml.OID) (*dirRef, error) {
	if r := c.hit(oid); r != nil {
		return r, nil
	}
	fd, err := c.open(oid)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.m[oid]; r != nil {
		unix.Close(fd)
		c.hold(r)
		return r, nil
	}
	r := &dirRef{fd: fd, oid: oid, cache: c, users: 1}
	c.m[oid] = r
	r.elem = c.used.PushBack(r)
	c.shrink()
	return r, nil
}

func (c *dirCache) hit(oid kml.OID) *dirRef {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.m[oid]
	if r != nil {
		c.hold(r)
	}
	return r
}

func (c *dirCache) hold(r *dirRef) {
	r.users++
	c.used.MoveToBack(r.elem)
}

// shrink closes what was not used for longest. The caller holds mu.
func (c *dirCache) shrink() {
	e := c.used.Front()
	for n := 0; e != nil && len(c.m) > c.max && n < busy; n++ {
		next := e.Next()
		if r := e.Value.(*dirRef); r.users == 0 {
			c.evict(r)
		}
		e = next
	}
}

func (r *dirRef) release() {
	c := r.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.users--; r.users == 0 && r.stale {
		unix.Close(r.fd)
	}
}

// evict closes an unused descriptor. The caller holds mu.
func (c *dirCache) evict(r *dirRef) {
	c.used.Remove(r.elem)
	delete(c.m, r.oid)
	unix.Close(r.fd)
}

// forget drops a folder that is gone or was found elsewhere.
func (c *dirCache) forget(oid kml.OID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.m[oid]
	if r == nil {
		return
	}
	if r.users == 0 {
		c.evict(r)
		return
	}
	c.drop(r)
}

// drop takes a descriptor that is in use out of the cache. The caller holds mu.
func (c *dirCache) drop(r *dirRef) {
	c.used.Remove(r.elem)
	delete(c.m, r.oid)
	r.stale = true
}

func (c *dirCache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.m {
		if r.users == 0 {
			c.evict(r)
		} else {
			c.drop(r)
		}
	}
}

// maxDepth bounds the way to the root, should an index ever have a loop.
const maxDepth = 8192

// open opens a folder from its parent's descriptor.
func (c *dirCache) open(oid kml.OID) (int, error) {
	// The nearest ancestor with a descriptor, and the way down from it.
	var way []*Object
	at := oid
	var from *dirRef
	for at != kml.RootOID {
		if len(way) > 0 {
			if from = c.hit(at); from != nil {
				break
			}
		}
		o, err := c.index.Get(at)
		if err != nil {
			return -1, err
		}
		if o.Attr.Mode&unix.S_IFMT != unix.S_IFDIR {
			return -1, syscall.ENOTDIR
		}
		if way = append(way, o); len(way) > maxDepth {
			return -1, errMoved
		}
		at = o.Parent
	}
	if from != nil {
		defer from.release()
	}
	start := c.root
	if from != nil {
		start = from.fd
	}
	fd, err := unix.Openat(start, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for i := len(way) - 1; i >= 0 && err == nil; i-- {
		var next int
		next, err = step(fd, way[i])
		unix.Close(fd)
		fd = next
	}
	return fd, err
}

// step opens one folder beneath another, and verifies that it is the one meant.
func step(fd int, o *Object) (int, error) {
	next, err := unix.Openat2(fd, o.Name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	switch err {
	case nil:
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EXDEV:
		return -1, errMoved
	default:
		return -1, err
	}
	var h rawHandle
	if err = h.at(next, ""); err == nil && len(o.Handle) > 0 && !h.is(o.Handle) {
		err = errMoved
	}
	if err != nil {
		unix.Close(next)
		return -1, err
	}
	return next, nil
}
