package tree

import (
	"fmt"
	"testing"
)

func entriesNamed(n int) []DirEntry {
	var list []DirEntry
	for i := range n {
		list = append(list, DirEntry{Name: fmt.Sprintf("name %d", i)})
	}
	return list
}

// TestPictureGoesOnInAnother reads a folder in pieces, each from a picture of
// its own, while names that were read already go: all others come once.
func TestPictureGoesOnInAnother(t *testing.T) {
	const names = 1000
	seen, gone := map[string]int{}, map[string]bool{}
	for off := uint64(0); ; {
		var list []DirEntry
		for _, e := range entriesNamed(names) {
			if !gone[e.Name] {
				list = append(list, e)
			}
		}
		p := takePicture(list)
		part := p.after(off, 7)
		if len(part) == 0 {
			break
		}
		for i, e := range part {
			seen[e.Name]++
			gone[e.Name] = i%2 == 0
			if e.Off <= off || e.Off > 1<<62 {
				t.Fatalf("offset %d after %d", e.Off, off)
			}
			off = e.Off
		}
	}
	for _, e := range entriesNamed(names) {
		if seen[e.Name] != 1 {
			t.Errorf("%q came %d times", e.Name, seen[e.Name])
		}
	}
}

func TestPictureKeepsNamesOfOneHash(t *testing.T) {
	p := takePicture([]DirEntry{{Name: "x"}, {Name: "x"}, {Name: "x"}})
	n := 0
	for off := uint64(0); ; n++ {
		part := p.after(off, 1)
		if len(part) == 0 {
			break
		}
		off = part[0].Off
	}
	if n != 3 {
		t.Errorf("%d of 3 entries", n)
	}
}
