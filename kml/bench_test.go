package kml

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func BenchmarkEncode(b *testing.B) {
	r := create(7)
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf, _, _ = AppendRecord(buf[:0], r, 1)
	}
	b.SetBytes(int64(len(buf)))
}

func BenchmarkDecode(b *testing.B) {
	buf, _, err := AppendRecord(nil, create(7), 1)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if _, _, _, err := ParseRecord(buf, 1); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAppend counts records, not batches.
func BenchmarkAppend(b *testing.B) {
	for _, batch := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("batch/%d", batch), func(b *testing.B) {
			l := testLog(b, Options{})
			recs := make([]*Record, batch)
			for i := range recs {
				recs[i] = create(i)
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := l.Append(recs...); err != nil {
					b.Fatal(err)
				}
				if l.Size() > 1<<30 {
					b.StopTimer()
					if _, err := l.DropBefore(l.End()); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
			}
			b.ReportMetric(float64(b.N*batch)/b.Elapsed().Seconds(), "records/s")
		})
	}
	b.Run("reserved/1", func(b *testing.B) {
		l := testLog(b, Options{})
		r := create(1)
		b.ReportAllocs()
		for b.Loop() {
			res, err := l.Reserve(1024)
			if err == nil {
				err = res.Append(r)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkRead(b *testing.B) {
	l := testLog(b, Options{})
	const n = 100_000
	for i := range n / 100 {
		appendN(b, l, i*100, 100)
	}
	for _, raw := range []bool{false, true} {
		name := "records"
		if raw {
			name = "raw"
		}
		b.Run(name, func(b *testing.B) {
			b.SetBytes(l.Size() - headerLen)
			for b.Loop() {
				r, err := l.ReaderAfter(0)
				if err != nil {
					b.Fatal(err)
				}
				for err == nil {
					if raw {
						_, err = r.TryNextRaw()
					} else {
						_, err = r.TryNext()
					}
				}
				if err != io.EOF || r.Pos() != l.End() {
					b.Fatal(err)
				}
				r.Close()
			}
			b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "records/s")
		})
	}
	b.Run("locate", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if _, err := l.CRCAt(Position(1 + i*7919%n)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("open", func(b *testing.B) {
		if err := l.Sync(); err != nil {
			b.Fatal(err)
		}
		b.SetBytes(l.Size())
		for b.Loop() {
			r, err := Open(l.dir, Options{ReadOnly: true})
			if err != nil {
				b.Fatal(err)
			}
			r.Close()
		}
	})
}

// BenchmarkFollow is an append until a waiting reader has the record.
func BenchmarkFollow(b *testing.B) {
	l := testLog(b, Options{})
	r, err := l.ReaderAfter(0)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	got := make(chan error)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			_, err := r.Next(b.Context())
			select {
			case got <- err:
			case <-b.Context().Done():
				return
			}
		}
	})
	rec := create(1)
	for b.Loop() {
		if err := l.Append(rec); err != nil {
			b.Fatal(err)
		}
		if err := <-got; err != nil {
			b.Fatal(err)
		}
	}
	b.Cleanup(wg.Wait)
}

// BenchmarkCommit is one record made durable by each of some callers, against
// a bare write and fdatasync of as many bytes, of one caller.
func BenchmarkCommit(b *testing.B) {
	for _, callers := range []int{1, 16} {
		b.Run(fmt.Sprintf("callers/%d", callers), func(b *testing.B) {
			l := testLog(b, Options{})
			for b.Loop() {
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() {
						if err := l.Append(create(1)); err != nil {
							b.Error(err)
						}
						if err := l.Commit(); err != nil {
							b.Error(err)
						}
					})
				}
				wg.Wait()
			}
			b.ReportMetric(float64(b.N*callers)/b.Elapsed().Seconds(), "commits/s")
		})
	}
	b.Run("fdatasync", func(b *testing.B) {
		f, err := os.Create(filepath.Join(b.TempDir(), "f"))
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		buf, _, err := AppendRecord(nil, create(1), 0)
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if _, err := f.Write(buf); err != nil {
				b.Fatal(err)
			}
			if err := (osFile{f}).Datasync(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
	})
}
