package client

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/internal/testutil"
)

// TestStream copies files of sizes around those of messages, in both
// directions, with every peer.
func TestStream(t *testing.T) {
	for name, p := range peers() {
		t.Run(name, func(t *testing.T) {
			testutil.CheckLeaks(t)
			addr, aname := p.start(t, t.TempDir())
			root := attach(t, dial(t, addr, Options{Msize: 16 << 10}), aname)
			ctx := t.Context()
			f, err := root.Clone(ctx)
			must(t, err)
			_, err = f.Create(ctx, "f", p9.ReadWrite, 0o644, 0)
			must(t, err)
			size := f.IOSize()
			for _, n := range []int{0, 1, size - 1, size, size + 1, 2 * size, 40*size + 7} {
				data := make([]byte, n)
				for i := range data {
					data[i] = byte(i * 7)
				}
				for _, inFlight := range []int{0, 1, 8} {
					took, err := f.CopyFrom(ctx, bytes.NewReader(data), 0, inFlight)
					if took != int64(n) || err != nil {
						t.Fatalf("write %d bytes, %d in flight: %d, %v", n, inFlight, took, err)
					}
					var got bytes.Buffer
					gave, err := f.CopyTo(ctx, &got, 0, inFlight)
					if gave != int64(n) || err != nil || !bytes.Equal(got.Bytes(), data) {
						t.Fatalf("read %d bytes, %d in flight: %d, %v", n, inFlight, gave, err)
					}
				}
			}
			var rest bytes.Buffer
			if n, err := f.CopyTo(ctx, &rest, int64(size), 4); n != int64(39*size+7) || err != nil {
				t.Errorf("read from the middle: %d, %v", n, err)
			}
			must(t, f.Clunk(ctx))
		})
	}
}

// limitWriter takes so many bytes and then fails.
type limitWriter struct{ left int }

func (w *limitWriter) Write(p []byte) (int, error) {
	if len(p) > w.left {
		return w.left, io.ErrClosedPipe
	}
	w.left -= len(p)
	return len(p), nil
}

func TestStreamErrors(t *testing.T) {
	testutil.CheckLeaks(t)
	root := attach(t, dial(t, hugelgupf(t, t.TempDir(), "unix"), Options{Msize: 8 << 10}), "")
	ctx := t.Context()
	f, err := root.Clone(ctx)
	must(t, err)
	_, err = f.Create(ctx, "f", p9.ReadWrite, 0o644, 0)
	must(t, err)
	data := make([]byte, 100_000)
	_, err = f.CopyFrom(ctx, bytes.NewReader(data), 0, 4)
	must(t, err)
	if n, err := f.CopyTo(ctx, &limitWriter{left: 50_000}, 0, 8); n != 50_000 || !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a writer that is full: %d, %v", n, err)
	}
	if n, err := f.CopyFrom(ctx, io.MultiReader(bytes.NewReader(data[:20_000]), iotest.ErrReader(io.ErrUnexpectedEOF)), 0, 4); n != 20_000 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a reader that fails: %d, %v", n, err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := f.CopyTo(ended, io.Discard, 0, 4); !errors.Is(err, context.Canceled) {
		t.Errorf("read without time: %v", err)
	}
	if _, err := f.CopyFrom(ended, bytes.NewReader(data), 0, 4); !errors.Is(err, context.Canceled) {
		t.Errorf("write without time: %v", err)
	}
	must(t, f.Clunk(ctx))
	if _, err := f.CopyTo(ctx, io.Discard, 0, 4); !errors.Is(err, ErrClunked) {
		t.Errorf("read after clunk: %v", err)
	}
}
