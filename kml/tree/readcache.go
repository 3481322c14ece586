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
	objs  recent[kml.OID, *Object] // nil: there is none
	names recent[Name, nameVal]    // oid 0: nothing there
	sites recent[kml.SiteID, siteState]
}

// maxClean is how many objects, and how many names, are kept: some 16 MB.
const maxClean = 1 << 15

// recent is a map of what was used lately: when one half of it is full, the other
// is forgotten.
type recent[K comparable, V any] struct{ young, old map[K]V }

func (r *recent[K, V]) get(k K) (V, bool) {
	v, ok := r.young[k]
	if ok {
		return v, true
	}
	if v, ok = r.old[k]; ok {
		r.put(k, v)
	}
	return v, ok
}

func (r *recent[K, V]) put(k K, v V) {
	if len(r.young) >= maxClean/2 {
		r.young, r.old = r.old, r.young
		clear(r.young)
	}
	if r.young == nil {
		r.young = make(map[K]V)
	}
	r.young[k] = v
}

func (r *recent[K, V]) remove(k K) {
	delete(r.young, k)
	delete(r.old, k)
}

func (c *readCache) object(oid kml.OID) (*Object, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.objs.get(oid)
}

func (c *readCache) name(n Name) (nameVal, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.names.get(n)
}

func (c *readCache) site(id kml.SiteID) (siteState, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sites.get(id)
}

// keep keeps what the file says of an object: nil is that it has none.
func (c *readCache) keep(oid kml.OID, o *Object) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.objs.put(oid, o)
}

func (c *readCache) keepName(n Name, v nameVal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.names.put(n, v)
}

func (c *readCache) keepSite(id kml.SiteID, st siteState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sites.put(id, st)
}

// replace takes what layers, newest first, have written over what was kept.
// Index.mu is held for writing.
func (c *readCache) replace(layers []*overlay) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := len(layers) - 1; i >= 0; i-- {
		for oid, o := range layers[i].objs {
			if o != nil {
				c.objs.put(oid, o)
			} else {
				c.objs.remove(oid)
			}
		}
		for id, st := range layers[i].sites {
			c.sites.put(id, st)
		}
		for p, m := range layers[i].names {
			for n, v := range m {
				if v.oid == 0 {
					v = nameVal{} // the file does not know since when
				}
				c.names.put(Name{p, n}, v)
			}
		}
	}
}
