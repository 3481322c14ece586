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

// held are locks of stripes that somebody has, rising.
type held struct {
	s   *stripes
	n   int
	few [4]uint16
	all []int // in place of few, when they are more
}

// lock takes the locks of all oids for writing, which unlock of what it returns
// gives back. Oid 0 stands for nothing.
func (s *stripes) lock(oids ...kml.OID) held {
	h := held{s: s}
	if len(oids) > len(h.few) {
		for _, o := range oids {
			if o != 0 {
				h.all = insertSorted(h.all, stripeOf(o))
			}
		}
		for _, i := range h.all {
			s[i].Lock()
		}
		return h
	}
	for _, o := range oids {
		if o != 0 {
			h.add(uint16(stripeOf(o)))
		}
	}
	for _, i := range h.few[:h.n] {
		s[i].Lock()
	}
	return h
}

// add is insertSorted for few.
func (h *held) add(v uint16) {
	at := h.n
	for at > 0 && h.few[at-1] >= v {
		at--
	}
	if at < h.n && h.few[at] == v {
		return
	}
	copy(h.few[at+1:h.n+1], h.few[at:h.n])
	h.few[at] = v
	h.n++
}

func (h held) unlock() {
	for _, i := range h.few[:h.n] {
		h.s[i].Unlock()
	}
	for _, i := range h.all {
		h.s[i].Unlock()
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
