package tree

import (
	"sync"

	"github.com/mezzofs/mezzo/kml"
)

// readCache keeps decoded what was read of an index's file, or written to it,
// last. It says what the file says: whoever asks or fills it holds Index.mu, for
// reading at least, so that no flush takes effect meanwhile, and a flush that
// has replaces here what it wrote before it gives up its layers.
type readCache struct {
	mu    sync.Mutex
	objs  map[kml.OID]*Object // nil: there is none
	names map[Name]nameVal    // oid 0: nothing there
	sites map[kml.SiteID]siteState
}

// maxClean is how many objects, and how many names, are kept: some 16 MB.
const maxClean = 1 << 15

func (c *readCache) object(oid kml.OID) (*Object, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o, ok := c.objs[oid]
	return o, ok
}

func (c *readCache) name(n Name) (nameVal, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.names[n]
	return v, ok
}

// keep keeps what the file says of an object: nil is that it has none.
func (c *readCache) keep(oid kml.OID, o *Object) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.objs == nil {
		c.objs = make(map[kml.OID]*Object)
	}
	c.objs[oid] = o
	shrink(c.objs)
}

func (c *readCache) site(id kml.SiteID) (siteState, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	st, ok := c.sites[id]
	return st, ok
}

func (c *readCache) keepSite(id kml.SiteID, st siteState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sites == nil {
		c.sites = make(map[kml.SiteID]siteState)
	}
	c.sites[id] = st
	shrink(c.sites)
}

func (c *readCache) keepName(n Name, v nameVal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.names == nil {
		c.names = make(map[Name]nameVal)
	}
	c.names[n] = v
	shrink(c.names)
}

// replace takes what layers, newest first, have written over what was kept.
// Index.mu is held for writing.
func (c *readCache) replace(layers []*overlay) {
	for i := len(layers) - 1; i >= 0; i-- {
		for oid, o := range layers[i].objs {
			if o != nil {
				c.keep(oid, o)
				continue
			}
			c.mu.Lock()
			delete(c.objs, oid)
			c.mu.Unlock()
		}
		for id, st := range layers[i].sites {
			c.keepSite(id, st)
		}
		for p, m := range layers[i].names {
			for n, v := range m {
				if v.oid == 0 {
					v = nameVal{} // the file does not know since when
				}
				c.keepName(Name{p, n}, v)
			}
		}
	}
}

// shrink makes room: any entry goes.
func shrink[K comparable, V any](m map[K]V) {
	for k := range m {
		if len(m) <= maxClean {
			return
		}
		delete(m, k)
	}
}
