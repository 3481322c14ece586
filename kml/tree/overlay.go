package tree

import "github.com/mezzofs/mezzo/kml"

// overlay is a set of changes on top of the index's file. Only the newest of
// an index's overlays changes; the others are read by anyone.
type overlay struct {
	objs    map[kml.OID]*Object // nil: deleted
	names   map[kml.OID]map[string]nameVal
	links   map[kml.OID]map[Name]bool // names of objects with several; false: deleted
	inos    map[uint64]kml.OID        // 0: deleted
	origins map[kml.Origin]kml.Position
	sites   map[kml.SiteID]siteState
	cursor  kml.Position
	crc     uint32 // see SetCursorCRC
	size    int
}

// nameVal is what a name holds; oid 0 is nothing, known to be so.
type nameVal struct {
	oid   kml.OID
	known kml.Position
}

// siteState is what the log has seen of a site.
type siteState struct {
	lastSeq    uint64 // highest record number
	maxCounter uint64 // highest oid counter
	forgotten  uint64 // outcomes of records up to this number are dropped
}

func newOverlay(cursor kml.Position) *overlay {
	return &overlay{
		objs:    make(map[kml.OID]*Object),
		names:   make(map[kml.OID]map[string]nameVal),
		links:   make(map[kml.OID]map[Name]bool),
		inos:    make(map[uint64]kml.OID),
		origins: make(map[kml.Origin]kml.Position),
		sites:   make(map[kml.SiteID]siteState),
		cursor:  cursor,
	}
}

// above is an empty overlay to go on top of o.
func (o *overlay) above() *overlay {
	n := newOverlay(o.cursor)
	n.crc = o.crc
	return n
}

func (o *overlay) setName(n Name, v nameVal) {
	m := o.names[n.Parent]
	if m == nil {
		m = make(map[string]nameVal)
		o.names[n.Parent] = m
	}
	m[n.Name] = v
	o.size++
}

func (o *overlay) setLink(oid kml.OID, n Name, there bool) {
	m := o.links[oid]
	if m == nil {
		m = make(map[Name]bool)
		o.links[oid] = m
	}
	m[n] = there
	o.size++
}

// merge lays from, which is newer, over o.
func (o *overlay) merge(from *overlay) {
	for k, v := range from.objs {
		o.objs[k] = v
	}
	for p, m := range from.names {
		for n, v := range m {
			o.setName(Name{p, n}, v)
		}
	}
	for oid, m := range from.links {
		for n, v := range m {
			o.setLink(oid, n, v)
		}
	}
	for k, v := range from.inos {
		o.inos[k] = v
	}
	for k, v := range from.origins {
		o.origins[k] = v
	}
	for k, v := range from.sites {
		o.sites[k] = v
	}
	o.size += len(from.objs) + len(from.inos) + len(from.origins)
}
