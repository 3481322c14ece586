package tree

import (
	"slices"

	"github.com/mezzofs/mezzo/kml"
)

// maxExtents bounds what a store remembers; more ranges than that are joined
// over the smallest gaps, and that only makes them larger.
const maxExtents = 64

// extentSet is a set of byte ranges, sorted and apart.
type extentSet struct{ list []kml.Extent }

// add joins [off, off+n) to the set.
func (s *extentSet) add(off, n uint64) {
	if n == 0 {
		return
	}
	end := off + n
	if end < off {
		end = ^uint64(0)
	}
	i, _ := slices.BinarySearchFunc(s.list, off, func(e kml.Extent, off uint64) int {
		if e.Off+e.Len < off {
			return -1
		}
		return 1
	})
	j := i
	for j < len(s.list) && s.list[j].Off <= end {
		off = min(off, s.list[j].Off)
		end = max(end, s.list[j].Off+s.list[j].Len)
		j++
	}
	s.list = slices.Replace(s.list, i, j, kml.Extent{Off: off, Len: end - off})
	if len(s.list) > maxExtents {
		s.joinClosest()
	}
}

func (s *extentSet) joinClosest() {
	best, gap := 0, ^uint64(0)
	for i := 0; i+1 < len(s.list); i++ {
		if g := s.list[i+1].Off - s.list[i].Off - s.list[i].Len; g < gap {
			best, gap = i, g
		}
	}
	a, b := s.list[best], s.list[best+1]
	s.list = slices.Replace(s.list, best, best+2, kml.Extent{Off: a.Off, Len: b.Off + b.Len - a.Off})
}

// clip is the set within a file of the given size, for a record. Nothing left
// still says "some change": an empty range at the end.
func (s *extentSet) clip(size uint64) []kml.Extent {
	out := make([]kml.Extent, 0, len(s.list))
	for _, e := range s.list {
		if e.Off >= size {
			break
		}
		out = append(out, kml.Extent{Off: e.Off, Len: min(e.Len, size-e.Off)})
	}
	if len(out) == 0 {
		out = append(out, kml.Extent{Off: size})
	}
	return out
}
