package export

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"testing"

	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/tree"
)

// benchMaster serves an empty fileset in process.
func benchMaster(b *testing.B) *File {
	b.Helper()
	dir := b.TempDir()
	if err := tree.Init(dir, tree.Options{}); err != nil {
		b.Fatal(err)
	}
	t, err := tree.Open(dir, tree.Options{})
	if err != nil {
		b.Fatal(err)
	}
	j, err := NewJournal(t, JournalOptions{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := errors.Join(j.Close(), t.Close()); err != nil {
			b.Error(err)
		}
	})
	f, err := New(t, Options{Ext: j, InPlace: true}).AttachAs(b.Context(), me(), "")
	if err != nil {
		b.Fatal(err)
	}
	return f.(*File)
}

func benchFile(b *testing.B, root *File, name string, data []byte) {
	b.Helper()
	f, _, _, err := root.Create(name, p9.ReadWrite, 0o644, 0, 0)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := f.WriteAt(data, 0); err != nil {
		b.Fatal(err)
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkExport is one operation without the wire.
func BenchmarkExport(b *testing.B) {
	root := benchMaster(b)
	benchFile(b, root, "f", make([]byte, 4096))
	_, f, err := root.Walk([]string{"f"})
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	b.Run("walk", func(b *testing.B) {
		for b.Loop() {
			_, g, err := root.WalkNames(nil, []string{"f"})
			if err != nil {
				b.Fatal(err)
			}
			g.Close()
		}
	})
	b.Run("getattr", func(b *testing.B) {
		for b.Loop() {
			if _, _, _, err := f.GetAttr(p9.AttrMaskAll); err != nil {
				b.Fatal(err)
			}
		}
	})
	if _, _, err := f.Open(p9.ReadWrite); err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 4096)
	b.Run("read/4K", func(b *testing.B) {
		for b.Loop() {
			if _, err := f.ReadAt(buf, 0); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("write/4K", func(b *testing.B) {
		for b.Loop() {
			if _, err := f.WriteAt(buf, 0); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkFeed reads a log of 1,000 small files from its beginning.
func BenchmarkFeed(b *testing.B) {
	root := benchMaster(b)
	for i := range 1000 {
		benchFile(b, root, fmt.Sprintf("f%d", i), make([]byte, 1024))
	}
	end := root.n.s.e.o.Ext.(*Journal).t.Log().End().Recno()
	for _, inline := range []int{0, 65536} {
		b.Run(fmt.Sprintf("catchup/%d", inline), func(b *testing.B) {
			buf := make([]byte, 256<<10)
			for b.Loop() {
				_, f, err := root.Walk([]string{tree.ExtDirName, "feed"})
				if err != nil {
					b.Fatal(err)
				}
				if _, _, err := f.Open(p9.ReadWrite); err != nil {
					b.Fatal(err)
				}
				if _, err := f.WriteAt([]byte(feed.Request{Inline: inline}.String()), 0); err != nil {
					b.Fatal(err)
				}
				h, off := f.(*extFile).h.(*feedHandle), int64(0)
				for h.r == nil || h.r.Pos().Recno() < end {
					n, err := f.ReadAt(buf, off)
					if err != nil && !errors.Is(err, io.EOF) {
						b.Fatal(err)
					}
					off += int64(n)
				}
				f.Close()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(end), "ns/record")
		})
	}
}
