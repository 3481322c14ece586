package tree

import (
	"cmp"
	"slices"
	"sort"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// picture is a folder's names as they were at one moment, in the order of their
// offsets. An offset is made of the name, so that it means the same in every
// picture of the folder: a kernel that keeps listings goes on, when it has
// dropped some, in a handle that has read nothing so far, and after others
// have removed names from the folder.
type picture struct {
	taken bool
	list  []DirEntry // shared, and never changed
}

// pictures are the last ones of a few folders: programs list the same folder
// again and again.
type pictures struct {
	mu      sync.Mutex
	m       map[kml.OID]pictureOf
	entries int // of all of them
}

// pictureOf is a picture with the inode and change time of its folder, which was
// past when the picture was taken: a folder that has both still has these names.
type pictureOf struct {
	ino   uint64
	ctime int64
	pic   picture
}

// maxPictured is how many entries are kept: some 16 MB.
const maxPictured = 1 << 17

func (s *pictures) get(oid kml.OID, st *unix.Statx_t) (picture, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.m[oid]
	if !ok || p.ino != st.Ino || p.ctime != nsOf(st.Ctime) {
		return picture{}, false
	}
	return p.pic, true
}

// put keeps a picture that was taken after st was looked at.
func (s *pictures) put(oid kml.OID, st *unix.Statx_t, pic picture) {
	ctime := nsOf(st.Ctime)
	if len(pic.list) > maxPictured || time.Since(time.Unix(0, ctime)) < stampAge(ctime) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = make(map[kml.OID]pictureOf)
	}
	s.entries += len(pic.list) + 1 - s.size(oid)
	s.m[oid] = pictureOf{st.Ino, ctime, pic}
	for o := range s.m {
		if s.entries <= maxPictured {
			break
		}
		s.entries -= s.size(o)
		delete(s.m, o)
	}
}

// size is what a folder's picture takes of what there is room for.
func (s *pictures) size(oid kml.OID) int {
	p, ok := s.m[oid]
	if !ok {
		return 0
	}
	return len(p.pic.list) + 1
}

// takePicture gives entries their offsets and puts them in order.
func takePicture(list []DirEntry) picture {
	for i := range list {
		list[i].Off = nameOffset(list[i].Name)
	}
	slices.SortFunc(list, func(a, b DirEntry) int {
		// Names are looked at only where hashes collide: cmp.Or would always.
		if c := cmp.Compare(a.Off, b.Off); c != 0 {
			return c
		}
		return cmp.Compare(a.Name, b.Name)
	})
	for i := 1; i < len(list); i++ {
		if list[i].Off <= list[i-1].Off {
			list[i].Off = list[i-1].Off + 1 // two names with one hash
		}
	}
	return picture{taken: true, list: list}
}

// after returns up to most entries behind off.
func (p *picture) after(off uint64, most int) []DirEntry {
	i := sort.Search(len(p.list), func(i int) bool { return p.list[i].Off > off })
	return p.list[i:min(len(p.list), i+most)]
}

// nameOffset is a hash of a name in 1 to 1<<61: FNV-1a with its bits mixed.
// Front ends add small numbers of their own to offsets, which are signed 64 bit
// numbers to a kernel.
func nameOffset(name string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	h = (h ^ h>>32) * 0x9E3779B97F4A7C15
	return h>>3 + 1
}
