package tree

import (
	"sync"

	"github.com/mezzofs/mezzo/kml"
)

// stripes is a fixed number of locks that all oids share. Two oids may share
// one; lockSet takes each lock once and in order, so that this cannot deadlock.
type stripes [512]sync.RWMutex

func stripeOf(o kml.OID) int {
	h := uint64(o) * 0x9E3779B97F4A7C15
	return int(h >> 55)
}

func (s *stripes) of(o kml.OID) *sync.RWMutex { return &s[stripeOf(o)] }

// lock takes the locks of all oids for writing and returns what gives them
// back. Oid 0 stands for nothing.
func (s *stripes) lock(oids ...kml.OID) (unlock func()) {
	idx := make([]int, 0, 4)
	for _, o := range oids {
		if o == 0 {
			continue
		}
		idx = insertSorted(idx, stripeOf(o))
	}
	for _, i := range idx {
		s[i].Lock()
	}
	return func() {
		for _, i := range idx {
			s[i].Unlock()
		}
	}
}

func insertSorted(idx []int, v int) []int {
	at := len(idx)
	for i, x := range idx {
		if x == v {
			return idx
		}
		if x > v {
			at = i
			break
		}
	}
	idx = append(idx, 0)
	copy(idx[at+1:], idx[at:])
	idx[at] = v
	return idx
}
