package tree

import "github.com/mezzofs/mezzo/kml"

// few is a map of up to fewMost entries, in a list: what one change makes is
// mostly a handful.
type few[K comparable, V any] []pair[K, V]

type pair[K comparable, V any] struct {
	k K
	v V
}

const fewMost = 16

func (f few[K, V]) get(k K) (v V, ok bool) {
	for i := range f {
		if f[i].k == k {
			return f[i].v, true
		}
	}
	return v, false
}

// set is false when there is no room.
func (f *few[K, V]) set(k K, v V) bool {
	l := *f
	for i := range l {
		if l[i].k == k {
			l[i].v = v
			return true
		}
	}
	if len(l) == fewMost {
		return false
	}
	*f = append(l, pair[K, V]{k, v})
	return true
}

// empty keeps the room.
func (f *few[K, V]) empty() {
	clear(*f)
	*f = (*f)[:0]
}

// draft is what one Update changes: in lists, or when it is much in an overlay.
type draft struct {
	objs    few[kml.OID, *Object] // nil: deleted
	names   few[Name, nameVal]
	links   few[link, bool]      // false: deleted
	inos    few[uint64, kml.OID] // 0: deleted
	origins few[kml.Origin, kml.Position]
	sites   few[kml.SiteID, siteState]
	much    *overlay // in place of all these; nil: it is little
	cursor  kml.Position
	crc     uint32 // see SetCursorCRC
}

// link is a name of an object with several.
type link struct {
	oid  kml.OID
	name Name
}

// empty makes d empty, as of a state of the index.
func (d *draft) empty(cursor kml.Position, crc uint32) {
	d.clear()
	d.much = nil
	d.cursor, d.crc = cursor, crc
}

func (d *draft) clear() {
	d.objs.empty()
	d.names.empty()
	d.links.empty()
	d.inos.empty()
	d.origins.empty()
	d.sites.empty()
}

// full makes d an overlay.
func (d *draft) full() *overlay {
	if d.much == nil {
		o := newOverlay(0)
		d.lay(o)
		d.clear()
		d.much = o
	}
	return d.much
}

func (d *draft) object(oid kml.OID) (*Object, bool) {
	if d.much != nil {
		o, ok := d.much.objs[oid]
		return o, ok
	}
	return d.objs.get(oid)
}

func (d *draft) setObject(oid kml.OID, o *Object) {
	if d.much != nil || !d.objs.set(oid, o) {
		d.full().objs[oid] = o
	}
}

func (d *draft) name(n Name) (nameVal, bool) {
	if d.much != nil {
		v, ok := d.much.names[n.Parent][n.Name]
		return v, ok
	}
	return d.names.get(n)
}

func (d *draft) setName(n Name, v nameVal) {
	if d.much != nil || !d.names.set(n, v) {
		d.full().setName(n, v)
	}
}

func (d *draft) setLink(oid kml.OID, n Name, there bool) {
	if d.much != nil || !d.links.set(link{oid, n}, there) {
		d.full().setLink(oid, n, there)
	}
}

func (d *draft) ino(ino uint64) (kml.OID, bool) {
	if d.much != nil {
		oid, ok := d.much.inos[ino]
		return oid, ok
	}
	return d.inos.get(ino)
}

func (d *draft) setIno(ino uint64, oid kml.OID) {
	if d.much != nil || !d.inos.set(ino, oid) {
		d.full().inos[ino] = oid
	}
}

func (d *draft) origin(o kml.Origin) (kml.Position, bool) {
	if d.much != nil {
		p, ok := d.much.origins[o]
		return p, ok
	}
	return d.origins.get(o)
}

func (d *draft) setOrigin(o kml.Origin, p kml.Position) {
	if d.much != nil || !d.origins.set(o, p) {
		d.full().origins[o] = p
	}
}

func (d *draft) site(id kml.SiteID) (siteState, bool) {
	if d.much != nil {
		st, ok := d.much.sites[id]
		return st, ok
	}
	return d.sites.get(id)
}

func (d *draft) setSite(id kml.SiteID, st siteState) {
	if d.much != nil || !d.sites.set(id, st) {
		d.full().sites[id] = st
	}
}

// lay lays d, which is newer, over o.
func (d *draft) lay(o *overlay) {
	if d.much != nil {
		o.merge(d.much)
	}
	for _, e := range d.objs {
		o.objs[e.k] = e.v
	}
	for _, e := range d.names {
		o.setName(e.k, e.v)
	}
	for _, e := range d.links {
		o.setLink(e.k.oid, e.k.name, e.v)
	}
	for _, e := range d.inos {
		o.inos[e.k] = e.v
	}
	for _, e := range d.origins {
		o.origins[e.k] = e.v
	}
	for _, e := range d.sites {
		o.sites[e.k] = e.v
	}
	o.cursor, o.crc = d.cursor, d.crc
	o.size += len(d.objs) + len(d.inos) + len(d.origins)
}
