package cachefs

import (
	"slices"
	"time"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/local"
)

// keySet is what changes that are held back would change.
type keySet struct {
	objs  map[kml.OID]bool
	names map[nameKey]bool
}

type nameKey struct {
	parent kml.OID
	name   string
}

// keysOf is what a record changes, and what else it needs to be as it is here.
func keysOf(r *kml.Record) (objs []kml.OID, names []nameKey, needs []kml.OID) {
	objs = []kml.OID{r.OID}
	if r.Victim != nil {
		objs = append(objs, r.Victim.OID)
	}
	switch r.Op {
	case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod, kml.OpLink, kml.OpUnlink, kml.OpRmdir:
		return objs, []nameKey{{r.Parent, r.Name}}, []kml.OID{r.Parent}
	case kml.OpRename:
		return objs, []nameKey{{r.Parent, r.Name}, {r.NewParent, r.NewName}}, []kml.OID{r.Parent, r.NewParent}
	}
	return objs, nil, nil
}

func (k *keySet) add(r *kml.Record) {
	if k.objs == nil {
		k.objs, k.names = make(map[kml.OID]bool), make(map[nameKey]bool)
	}
	objs, names, _ := keysOf(r)
	for _, o := range objs {
		k.objs[o] = true
	}
	for _, n := range names {
		k.names[n] = true
	}
}

// holds reports whether a record depends on what is held back.
func (k *keySet) holds(r *kml.Record) bool {
	if len(k.objs) == 0 {
		return false
	}
	objs, names, needs := keysOf(r)
	for _, o := range append(objs, needs...) {
		if k.objs[o] {
			return true
		}
	}
	for _, n := range names {
		if k.names[n] {
			return true
		}
	}
	if r.Op == kml.OpRmdir || r.Op == kml.OpRename && r.Victim != nil {
		for n := range k.names {
			if n.parent == r.OID || r.Victim != nil && n.parent == r.Victim.OID {
				return true // what is in it has not gone yet
			}
		}
	}
	return false
}

// gather is the next batch for a link: what it has not been sent yet, in order,
// but for what is held back and what depends on that.
func (p *pusher) gather(up *upstream, l *local.Log, top func(*kml.Record) kml.OID) (batch []*sending) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.link != up {
		p.link, p.at = up, 0
		clear(p.again)
	}
	if up.inFlight >= maxInFlight || len(p.stuck) > 0 {
		return nil // what is stuck is settled when nothing is on its way any more
	}
	g := gathering{p: p, up: up, now: time.Now(), top: top, most: min(maxBatchBytes, up.pace.Window())}
	for _, id := range p.lookAgain() {
		if e := l.Get(id); e != nil && !g.full {
			g.look(e)
		} else if e == nil {
			delete(p.again, id)
		}
	}
	for !g.full {
		es := l.From(p.at, 256)
		if len(es) == 0 {
			break
		}
		for _, e := range es {
			if p.young(e) {
				g.full = true
				break
			}
			if g.look(e); g.full {
				break
			}
			p.at = e.ID
		}
	}
	return g.batch
}

func (p *pusher) lookAgain() []uint64 {
	if len(p.again) == 0 {
		return nil
	}
	ids := make([]uint64, 0, len(p.again))
	for id := range p.again {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// gathering is a batch in the making.
type gathering struct {
	p     *pusher
	up    *upstream
	now   time.Time
	top   func(*kml.Record) kml.OID
	batch []*sending
	size  int
	most  int // bytes
	full  bool
	held  keySet
	stuck keySet // by what has to be settled first
}

// look puts a change into the batch, or holds it back. The caller holds p.mu.
func (g *gathering) look(e *local.Entry) {
	p := g.p
	s := p.st[e.ID]
	if _, aside := p.aside[s]; aside && s != nil {
		g.stuck.add(e.Rec())
		return
	}
	if s != nil && (s.decided || s.on == g.up) || e.Back() != 0 {
		delete(p.again, e.ID)
		return
	}
	r, raw := e.Now()
	// What the master may have been sent, or somebody waits for, it decides on first.
	if sent := e.Seq() != 0 || s != nil && s.waited > 0; !sent && g.stuck.holds(r) {
		g.stuck.add(r)
		p.again[e.ID] = true
		return
	}
	if g.wait(e, s, r) {
		g.held.add(r)
		p.again[e.ID] = true
		return
	}
	g.size += max(len(raw), 200)
	if e.Data && inline(r) {
		g.size += int(r.Attr.Size)
	}
	if len(g.batch) == maxBatch || g.size > g.most && len(g.batch) > 0 {
		g.full = true
		return
	}
	delete(p.again, e.ID)
	g.batch = append(g.batch, p.of(e))
}

// overtake is how long a large upload holds up what is in other folders.
const overtake = 10 * time.Second

// wait reports whether a change is held back.
func (g *gathering) wait(e *local.Entry, s *sending, r *kml.Record) bool {
	if s != nil && g.now.Before(s.later.at) || g.held.holds(r) {
		return true
	}
	if len(g.p.upping) == 0 {
		return false
	}
	if g.p.upping[e.ID] != nil {
		return true
	}
	if s != nil && s.waited > 0 {
		return false // it depends on nothing that is held
	}
	for id, u := range g.p.upping {
		if id < e.ID && (g.now.Sub(u.began) < overtake || g.top(u.rec) == g.top(r)) {
			return true
		}
	}
	return false
}

// topOf is the folder in the root that a change is in.
func (c *Client) topOf(r *kml.Record) kml.OID {
	oid := r.OID
	if r.Parent != 0 {
		oid = r.Parent
	}
	for range 256 {
		obj, err := c.cache.Object(oid)
		if err != nil || obj.Parent == 0 || obj.Parent == kml.RootOID {
			break
		}
		oid = obj.Parent
	}
	return oid
}
