package tree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// BenchmarkIndexFile is what it takes to check an index, to write it out as a
// checkpoint, to read that, and to make the index again from it.
func BenchmarkIndexFile(b *testing.B) {
	for _, n := range []int{100_000, 1_000_000} {
		x, path := someIndex(b, n)
		st, err := os.Stat(path)
		if err != nil {
			b.Fatal(err)
		}
		file := filepath.Join(b.TempDir(), "checkpoint")
		var size int64
		run := func(name string, f func() error) {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				for b.Loop() {
					if err := f(); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(st.Size())/float64(n), "index-B/file")
				b.ReportMetric(float64(size)/float64(n), "checkpoint-B/file")
			})
		}
		run("pages", func() error { return checkPages(path) })
		run("entries", func() error { return x.Check(ctx) })
		run("dump", func() error {
			f, err := os.Create(file)
			if err != nil {
				return err
			}
			defer f.Close()
			_, size, err = x.dump(f, [16]byte{}, chainOf)
			return err
		})
		run("read", func() error {
			_, _, err := readCheckpoint(file, true)
			return err
		})
		run("restore", func() error { return restoreIndex(file+".db", file, false) })
	}
}

// BenchmarkOpenAfterCrash opens a fileset whose machine crashed while files were
// changed, the disk having kept all that was written.
func BenchmarkOpenAfterCrash(b *testing.B) {
	const files, folders = 100_000, 100
	dir := filepath.Join(b.TempDir(), "fs")
	for i := range folders {
		d := filepath.Join(dir, fmt.Sprintf("folder-%d", i))
		if err := os.MkdirAll(d, 0o755); err != nil {
			b.Fatal(err)
		}
		for j := range files / folders {
			if err := os.WriteFile(filepath.Join(d, fmt.Sprintf("file-%d", j)), nil, 0o644); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := Init(dir, Options{NoWatch: true, Boot: bootOf(0)}); err != nil {
		b.Fatal(err)
	}
	tr, err := Open(dir, Options{NoWatch: true, Boot: bootOf(0)})
	if err != nil {
		b.Fatal(err)
	}
	start := time.Now()
	if err := tr.checkpoint(); err != nil {
		b.Fatal(err)
	}
	took := time.Since(start)
	st, err := os.Stat(tr.state.Path("index.db"))
	if err := errors.Join(err, tr.Close()); err != nil {
		b.Fatal(err)
	}
	boot := 0
	for b.Loop() {
		b.StopTimer()
		boot++
		tr, err = Open(dir, Options{NoWatch: true, Boot: bootOf(boot), SyncEvery: 200 * time.Millisecond})
		if err != nil {
			b.Fatal(err)
		}
		for i, end := 0, time.Now().Add(3*time.Second); time.Now().Before(end); i++ {
			_, h, err := tr.Create(ctx, nil, kml.RootOID, fmt.Sprintf("new-%d", i%1000), unix.O_RDWR|unix.O_TRUNC, 0o644)
			if err == nil {
				_, err = h.WriteAt(ctx, []byte("new"), 0)
			}
			if err == nil {
				err = h.Close()
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		_ = tr.closeParts()
		b.StartTimer()
		tr, err = Open(dir, Options{NoWatch: true, Boot: bootOf(boot + 1)})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		boot++
		if err := tr.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(took.Milliseconds()), "checkpoint-ms")
	b.ReportMetric(float64(tr.kept.size)/files, "checkpoint-B/file")
	b.ReportMetric(float64(st.Size())/files, "index-B/file")
}
