package client

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/hugelgupf/p9/p9"
)

// repeat runs op from n goroutines at a time.
func repeat(b *testing.B, n int, op func() error) {
	if n == 1 {
		for b.Loop() {
			if err := op(); err != nil {
				b.Fatal(err)
			}
		}
		return
	}
	b.SetParallelism(max(n/runtime.GOMAXPROCS(0), 1))
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := op(); err != nil {
				b.Error(err)
			}
		}
	})
}

func benchRoot(b *testing.B) *Fid {
	dir := b.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), make([]byte, 8<<20), 0o644); err != nil {
		b.Fatal(err)
	}
	addr, _ := ours(b, dir)
	return attach(b, dial(b, addr, Options{}), "")
}

func BenchmarkGetAttr(b *testing.B) {
	for _, n := range []int{1, 16} {
		b.Run(fmt.Sprintf("inflight=%d", n), func(b *testing.B) {
			root := benchRoot(b)
			repeat(b, n, func() error {
				_, _, _, err := root.GetAttr(b.Context(), p9.AttrMaskAll)
				return err
			})
		})
	}
}

func BenchmarkRead(b *testing.B) {
	for _, size := range []int{4 << 10, 1 << 20} {
		for _, n := range []int{1, 16} {
			b.Run(fmt.Sprintf("size=%d/inflight=%d", size, n), func(b *testing.B) {
				f, _, err := benchRoot(b).Walk(b.Context(), "f")
				if err != nil {
					b.Fatal(err)
				}
				if _, err := f.Open(b.Context(), p9.ReadOnly); err != nil {
					b.Fatal(err)
				}
				b.SetBytes(int64(size))
				repeat(b, n, func() error {
					_, err := f.ReadAt(b.Context(), make([]byte, size), 0)
					return err
				})
			})
		}
	}
}
