package fusefs

import (
	"sync"
	"time"

	"github.com/mezzofs/mezzo/kml"
)

// late remembers which threads were sent to look a name up again because its
// file was replaced between their lookup and their open. The kernel does that
// once and then gives the error to the program, which under steady replacing
// would see an ESTALE that no local file system gives.
type late struct {
	mu sync.Mutex
	m  map[uint32]lateOpen // by thread
}

type lateOpen struct {
	oid  kml.OID
	when time.Time
}

// Bounds of late: a second attempt follows the first at once.
const (
	lateFor = time.Second
	lateMax = 1024
)

// again reports whether a thread was sent away from an object before, and
// remembers it if not.
func (l *late) again(pid uint32, oid kml.OID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if o, ok := l.m[pid]; ok && o.oid == oid && now.Sub(o.when) < lateFor {
		return true
	}
	if l.m == nil {
		l.m = map[uint32]lateOpen{}
	}
	if len(l.m) >= lateMax {
		for k, o := range l.m {
			if now.Sub(o.when) >= lateFor {
				delete(l.m, k)
			}
		}
	}
	if len(l.m) < lateMax {
		l.m[pid] = lateOpen{oid, now}
	}
	return false
}

// forget is called when a thread's open has succeeded.
func (l *late) forget(pid uint32) {
	l.mu.Lock()
	delete(l.m, pid)
	l.mu.Unlock()
}
