package p9srv

import (
	"math/bits"
	"sync"
)

// buffers is a pool of byte slices in powers of two from 4 KiB up, so that a
// message costs about what it needs and never an msize.
type buffers struct {
	classes [maxClass - minClass + 1]sync.Pool // of *[]byte
}

const (
	minClass = 12 // 4 KiB
	maxClass = 22 // 4 MiB; larger ones are left to the garbage collector
)

// get returns an empty slice with room for n bytes.
func (p *buffers) get(n int) []byte {
	c := max(bits.Len(uint(max(n, 1)-1)), minClass)
	if c > maxClass {
		return make([]byte, 0, n)
	}
	if b, ok := p.classes[c-minClass].Get().(*[]byte); ok {
		return (*b)[:0]
	}
	return make([]byte, 0, 1<<c)
}

// put gives a slice back. Nobody may use it any more.
func (p *buffers) put(b []byte) {
	c := bits.Len(uint(cap(b))) - 1
	if c < minClass || c > maxClass || cap(b) != 1<<c {
		return
	}
	b = b[:0]
	p.classes[c-minClass].Put(&b)
}
