package fusefs

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func benchMount(b *testing.B) string {
	needFuse(b)
	tr := newTree(b, b.TempDir())
	mnt, _ := mountAt(b, tr, Options{Door: 1})
	return mnt
}

// places runs a benchmark through the mount and beside it.
func places(b *testing.B, f func(b *testing.B, dir string)) {
	b.Run("mount", func(b *testing.B) { f(b, benchMount(b)) })
	b.Run("native", func(b *testing.B) { f(b, b.TempDir()) })
}

func writeFile(b testing.TB, p string, data []byte) {
	fd, err := unix.Open(p, unix.O_CREAT|unix.O_WRONLY|unix.O_TRUNC, 0o644)
	must(b, err)
	_, err = unix.Write(fd, data)
	must(b, err)
	must(b, unix.Close(fd))
}

// BenchmarkCreate4k makes and writes files of 4 KiB.
func BenchmarkCreate4k(b *testing.B) {
	places(b, func(b *testing.B, dir string) {
		data := make([]byte, 4096)
		for i := 0; b.Loop(); i++ {
			writeFile(b, fmt.Sprintf("%s/%d", dir, i), data)
		}
	})
}

// BenchmarkStat asks for attributes the kernel has.
func BenchmarkStat(b *testing.B) {
	places(b, func(b *testing.B, dir string) {
		p := filepath.Join(dir, "f")
		writeFile(b, p, nil)
		var st unix.Stat_t
		for b.Loop() {
			must(b, unix.Stat(p, &st))
		}
	})
}

// BenchmarkRead4k opens, reads and closes small files the kernel has pages of.
func BenchmarkRead4k(b *testing.B) {
	places(b, func(b *testing.B, dir string) {
		const files = 100
		buf := make([]byte, 4096)
		for i := range files {
			writeFile(b, fmt.Sprintf("%s/%d", dir, i), buf)
		}
		for i := 0; b.Loop(); i++ {
			fd, err := unix.Open(fmt.Sprintf("%s/%d", dir, i%files), unix.O_RDONLY, 0)
			must(b, err)
			if n, err := unix.Read(fd, buf); n != len(buf) || err != nil {
				b.Fatal(n, err)
			}
			must(b, unix.Close(fd))
		}
	})
}

// BenchmarkReadSeq reads 64 MiB by 1 MiB, with the kernel's pages and without.
func BenchmarkReadSeq(b *testing.B) {
	const size = 64 << 20
	for _, cold := range []bool{false, true} {
		name := "warm"
		if cold {
			name = "cold"
		}
		b.Run(name, func(b *testing.B) {
			places(b, func(b *testing.B, dir string) {
				p := filepath.Join(dir, "f")
				must(b, os.WriteFile(p, make([]byte, size), 0o644))
				fd, err := unix.Open(p, unix.O_RDONLY, 0)
				must(b, err)
				defer unix.Close(fd)
				must(b, unix.Fsync(fd))
				buf := make([]byte, 1<<20)
				b.SetBytes(size)
				for b.Loop() {
					if cold {
						must(b, unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED))
					}
					for off := int64(0); off < size; off += int64(len(buf)) {
						if n, err := unix.Pread(fd, buf, off); n != len(buf) || err != nil {
							b.Fatal(n, err)
						}
					}
				}
			})
		})
	}
}
