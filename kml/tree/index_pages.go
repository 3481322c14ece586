package tree

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// The layout of bbolt's file, version 2 (go.etcd.io/bbolt, internal/common):
// pages with a head of u64 id, u16 flags, u16 count, u32 overflow, in the order
// of this machine's bytes. Its own check runs in a goroutine that panics.
const (
	pageHead     = 16
	pageBranch   = 0x01 // elements: u32 position, u32 key length, u64 page
	pageLeaf     = 0x02 // elements: u32 flags, u32 position, u32 lengths of key and value
	pageFreelist = 0x10 // u64 page numbers; with a count of 0xffff the first says how many
	pageElement  = 16
	leafBucket   = 0x01 // flag of an element: the value is a bucket: u64 root page, u64 sequence
	boltMagic    = 0xED0CDAED
	boltVersion  = 2
	boltMeta     = 64
	noFreelist   = ^uint64(0)
)

// pages is an index's file while it is looked at from outside.
type pages struct {
	b    []byte
	size int      // of a page
	high uint64   // pages from here on are not in use
	seen []uint64 // bits: pages that are accounted for
}

// checkPages reads how the pages of a file that nobody has open hang together:
// each that is reached is reached once, keys lie where a search goes, and what
// the file calls free is not in use. Of pages with entries it reads little: what
// they hold is for entries to check. The error is ErrIndexDamaged.
func checkPages(path string) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return &os.PathError{Op: "mmap", Path: path, Err: err}
	}
	defer func() { _ = unix.Munmap(b) }()
	onFault := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(onFault)
		if p := recover(); p != nil { // beyond a slice, or a page that cannot be read
			err = fmt.Errorf("%v", p)
		}
		if err != nil {
			err = fmt.Errorf("%s: pages: %w: %w", path, ErrIndexDamaged, err)
		}
	}()
	return (&pages{b: b}).check()
}

func (p *pages) check() error {
	ne := binary.NativeEndian
	root, free, err := p.meta()
	if err != nil {
		return err
	}
	p.seen = make([]uint64, p.high/64+1)
	p.seen[0] = 3 // the metas
	if err := p.tree(root, nil, nil, true, 0); err != nil {
		return err
	}
	if free == noFreelist {
		return nil
	}
	b, err := p.page(free, pageFreelist)
	if err != nil {
		return err
	}
	n, at := uint64(ne.Uint16(b[10:])), uint64(pageHead)
	if n == 0xffff {
		n, at = ne.Uint64(b[at:]), at+8
	}
	if n > uint64(len(b))/8 {
		return fmt.Errorf("%d pages are free", n)
	}
	for i := range n {
		if err := p.mark(ne.Uint64(b[at+8*i:]), 1); err != nil {
			return fmt.Errorf("free: %w", err)
		}
	}
	return nil
}

// meta takes the root page and that of the free list from the newer meta page
// that is whole.
func (p *pages) meta() (root, free uint64, err error) {
	ne := binary.NativeEndian
	var newest uint64
	p.size = os.Getpagesize()
	for i := range 2 {
		if len(p.b) < (i+1)*p.size {
			break
		}
		m := p.b[i*p.size+pageHead:][:boltMeta]
		h := fnv.New64a()
		h.Write(m[:boltMeta-8])
		if ne.Uint32(m) != boltMagic || ne.Uint32(m[4:]) != boltVersion || ne.Uint64(m[56:]) != h.Sum64() || ne.Uint32(m[8:]) != uint32(p.size) {
			continue
		}
		if tx := ne.Uint64(m[48:]); p.high == 0 || tx > newest {
			newest, root, free, p.high = tx, ne.Uint64(m[16:]), ne.Uint64(m[32:]), ne.Uint64(m[40:])
		}
	}
	if p.high == 0 || p.high > uint64(len(p.b)/p.size) {
		return 0, 0, fmt.Errorf("no meta page is whole, or pages are missing: %d of %d", len(p.b)/p.size, p.high)
	}
	return root, free, nil
}

// mark accounts for n pages from id on.
func (p *pages) mark(id, n uint64) error {
	if id < 2 || id >= p.high || n > p.high-id {
		return fmt.Errorf("page %d of %d", id, p.high)
	}
	for ; n > 0; id, n = id+1, n-1 {
		if p.seen[id/64]>>(id%64)&1 != 0 {
			return fmt.Errorf("page %d is in use twice", id)
		}
		p.seen[id/64] |= 1 << (id % 64)
	}
	return nil
}

// page is a page with the pages it flows over to, once.
func (p *pages) page(id uint64, flags uint16) ([]byte, error) {
	if id < 2 || id >= p.high {
		return nil, fmt.Errorf("page %d of %d", id, p.high)
	}
	b := p.b[int(id)*p.size:]
	ne := binary.NativeEndian
	if got := ne.Uint16(b[8:]); ne.Uint64(b) != id || got != flags && flags != 0 {
		return nil, fmt.Errorf("page %d says it is %d with flags %#x", id, ne.Uint64(b), got)
	}
	n := uint64(ne.Uint32(b[12:])) + 1
	if err := p.mark(id, n); err != nil {
		return nil, err
	}
	return b[:int(n)*p.size], nil
}

// tree walks the pages below id, whose keys lie in [low, high); nil is no bound.
func (p *pages) tree(id uint64, low, high []byte, top bool, depth int) error {
	b, err := p.page(id, 0)
	if err != nil {
		return err
	}
	ne := binary.NativeEndian
	n := int(ne.Uint16(b[10:]))
	switch flags := ne.Uint16(b[8:]); {
	case depth > 64:
		return fmt.Errorf("page %d lies too deep", id)
	case flags == pageBranch && n > 0:
		return p.branch(b, n, low, high, top, depth)
	case flags == pageLeaf:
		return p.leaf(b, n, low, high, top, depth)
	default:
		return fmt.Errorf("page %d has flags %#x and %d elements", id, flags, n)
	}
}

func (p *pages) branch(b []byte, n int, low, high []byte, top bool, depth int) error {
	ne := binary.NativeEndian
	key := func(i int) []byte {
		at := pageHead + i*pageElement
		return b[at+int(ne.Uint32(b[at:])):][:ne.Uint32(b[at+4:])]
	}
	for i := range n {
		from, to := key(i), high
		if i+1 < n {
			to = key(i + 1)
		}
		if !within(from, low, high) || to != nil && bytes.Compare(from, to) >= 0 {
			return fmt.Errorf("page %d: key %d is out of order", ne.Uint64(b), i)
		}
		if i == 0 {
			from = low // a search for less than the first key goes there, too
		}
		if err := p.tree(ne.Uint64(b[pageHead+i*pageElement+8:]), from, to, top, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (p *pages) leaf(b []byte, n int, low, high []byte, top bool, depth int) error {
	ne := binary.NativeEndian
	element := func(i int) (flags uint32, k, v []byte) {
		at := pageHead + i*pageElement
		kv := b[at+int(ne.Uint32(b[at+4:])):]
		nk := ne.Uint32(b[at+8:])
		return ne.Uint32(b[at:]), kv[:nk], kv[nk:][:ne.Uint32(b[at+12:])]
	}
	if !top {
		if n == 0 {
			return nil
		}
		_, first, _ := element(0)
		_, last, _ := element(n - 1)
		if !within(first, low, high) || !within(last, low, high) {
			return fmt.Errorf("page %d has keys of another", ne.Uint64(b))
		}
		return nil
	}
	for i := range n {
		flags, k, v := element(i)
		if flags&leafBucket == 0 || len(v) < 16 {
			return fmt.Errorf("%q is no bucket", k)
		}
		if root := ne.Uint64(v); root != 0 { // else it stands in the value
			if err := p.tree(root, nil, nil, false, depth+1); err != nil {
				return fmt.Errorf("bucket %q: %w", k, err)
			}
		}
	}
	return nil
}

func within(k, low, high []byte) bool {
	return (low == nil || bytes.Compare(k, low) >= 0) && (high == nil || bytes.Compare(k, high) < 0)
}
