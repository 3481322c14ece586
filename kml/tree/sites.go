package tree

import (
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"

	"github.com/google/renameio/v2"

	"github.com/mezzofs/mezzo/kml"
)

// Site is what a master knows of a client installation.
type Site struct {
	ID   kml.SiteID `json:"id"`
	Host string     `json:"host"`
	// UID is the identity that enrolled it; only that one may use it.
	UID uint32 `json:"uid"`
	// Key is a hash of what the client last showed it holds; the session before
	// it may still be the one the client knows.
	Key     []byte `json:"key"`
	PrevKey []byte `json:"prev_key,omitempty"`

	LastSeq    uint64 `json:"-"` // highest record number of the site in the log
	MaxCounter uint64 `json:"-"` // highest oid counter of the site in the log
}

// Knows reports whether a client that shows key is the one that was served
// last, and not a clone or a backup of it.
func (s Site) Knows(key []byte) bool {
	return len(key) > 0 && (subtle.ConstantTimeCompare(key, s.Key) == 1 || subtle.ConstantTimeCompare(key, s.PrevKey) == 1)
}

// sites is the table of enrolled sites, kept in sites.json.
type sites struct {
	mu   sync.Mutex
	path string
	m    map[kml.SiteID]Site
}

func openSites(path string) (*sites, error) {
	s := &sites{path: path, m: make(map[kml.SiteID]Site)}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	var list []Site
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, x := range list {
		s.m[x.ID] = x
	}
	return s, nil
}

// put keeps x, durably.
func (s *sites) put(x Site) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, had := s.m[x.ID]
	s.m[x.ID] = x
	err := s.save()
	if err != nil && had {
		s.m[x.ID] = old
	} else if err != nil {
		delete(s.m, x.ID)
	}
	return err
}

func (s *sites) save() error {
	list := make([]Site, 0, len(s.m))
	for _, x := range s.m {
		list = append(list, x)
	}
	slices.SortFunc(list, func(a, b Site) int { return int(a.ID) - int(b.ID) })
	b, err := json.MarshalIndent(list, "", "\t")
	if err != nil {
		return err
	}
	return renameio.WriteFile(s.path, append(b, '\n'), 0o600)
}

// Enrol gives a client installation its site number; key is a hash of the
// secret it was given with it.
func (t *Tree) Enrol(host string, uid uint32, key []byte) (Site, error) {
	id, err := t.state.MintSite()
	if err != nil {
		return Site{}, err
	}
	x := Site{ID: id, Host: host, UID: uid, Key: key}
	r := t.record(nil, kml.OpMark)
	r.Mark, r.Site, r.Name, r.UID = kml.MarkSite, id, host, uid
	res, err := t.reserve(r)
	if err != nil {
		return Site{}, err
	}
	defer res.Release()
	if err := t.journal(mutation{rec: r, res: &res}); err != nil {
		return Site{}, err
	}
	return x, t.sites.put(x)
}

// Site is what is known of an enrolled site.
func (t *Tree) Site(id kml.SiteID) (Site, bool) {
	t.sites.mu.Lock()
	x, ok := t.sites.m[id]
	t.sites.mu.Unlock()
	if !ok {
		return Site{}, false
	}
	_ = t.index.Update(func(b *Batch) error {
		x.LastSeq, x.MaxCounter = b.LastSeq(id), b.MaxCounter(id)
		return nil
	})
	return x, true
}

// Minted reports whether an oid has been an object's, as far as is known: one that
// is gone may be made again under it.
func (t *Tree) Minted(oid kml.OID) bool {
	fs := t.state.Fileset()
	switch site := oid.Site(); {
	case oid.Counter() == 0 || site == 0:
		return false
	case site == fs.Site:
		return oid.Counter() < fs.CounterReserved
	case slices.Contains(fs.OwnSites, site):
		return true
	default:
		x, ok := t.Site(site)
		return ok && oid.Counter() <= x.MaxCounter
	}
}

// SetSiteKeys sets whom a site is known by from now on: the hash of the key of
// its new session, and with prev that of the key that the client showed, which
// stays good until the client uses the session: the answer with the new one may
// never reach it.
func (t *Tree) SetSiteKeys(id kml.SiteID, key, prev []byte) error {
	x, ok := t.Site(id)
	if !ok {
		return fmt.Errorf("site %d is not enrolled: %w", id, fs.ErrNotExist)
	}
	x.Key, x.PrevKey = key, prev
	return t.sites.put(x)
}

// Forget drops what is remembered of the outcome of a site's records up to seq:
// the site knows them all.
func (t *Tree) Forget(id kml.SiteID, seq uint64) error {
	return t.index.Update(func(b *Batch) error { return b.Forget(id, seq) })
}

// Stage is the folder for uploads.
func (t *Tree) Stage() string { return t.state.Path("stage") }
