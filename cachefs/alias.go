package cachefs

import (
	"sync"

	"github.com/mezzofs/mezzo/kml"
)

// alias is an object made here that became one of the master's.
type alias struct{ from, to kml.OID }

// aliases are what objects became that somebody may still have before him: a
// folder that is a process's own, or a file that a kernel knows by its number.
type aliases struct {
	mu sync.RWMutex
	m  map[kml.OID]kml.OID
}

// maxAliases bounds how many are known; all are forgotten then, and who comes with
// the number of one is told that it is gone.
const maxAliases = 1 << 16

func (a *aliases) add(as []alias) {
	if len(as) == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.m == nil || len(a.m) > maxAliases {
		a.m = make(map[kml.OID]kml.OID)
	}
	for _, x := range as {
		if a.of(x.to) != x.from {
			a.m[x.from] = x.to
		}
	}
}

// of is now without the lock.
func (a *aliases) of(oid kml.OID) kml.OID {
	for range len(a.m) {
		to, ok := a.m[oid]
		if !ok {
			break
		}
		oid = to
	}
	return oid
}

// now is what an object is by now.
func (c *Client) now(oid kml.OID) kml.OID {
	c.aliases.mu.RLock()
	defer c.aliases.mu.RUnlock()
	return c.aliases.of(oid)
}
