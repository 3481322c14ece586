package client

import (
	"context"
	"errors"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hugelgupf/p9/fsimpl/templatefs"
	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// stream is a root whose reads wait until they are flushed.
type stream struct {
	templatefs.NoopFile
}

func (s *stream) Attach() (p9.File, error) { return s, nil }

func (*stream) GetAttr(p9.AttrMask) (p9.QID, p9.AttrMask, p9.Attr, error) {
	return p9.QID{Path: 1}, p9.AttrMask{Mode: true}, p9.Attr{Mode: p9.ModeRegular | 0o444}, nil
}

func (*stream) Open(p9.OpenFlags) (p9.QID, uint32, error) { return p9.QID{Path: 1}, 0, nil }

func (*stream) Close() error { return nil }

func (*stream) ReadAt([]byte, int64) (int, error) { return 0, errors.ErrUnsupported }

func (*stream) ReadAtContext(ctx context.Context, _ []byte, _ int64) (int, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}

// TestWaitingRead reads a stream file of p9srv for many times Options.Timeout,
// and then gives up.
func TestWaitingRead(t *testing.T) {
	testutil.CheckLeaks(t)
	addr := "unix!" + filepath.Join(t.TempDir(), "sock")
	ln, err := p9srv.Listen(t.Context(), addr)
	must(t, err)
	srv := p9srv.New(&stream{}, p9srv.Options{})
	served := make(chan error, 1)
	go func() { served <- srv.Serve(context.WithoutCancel(t.Context()), ln) }()
	defer func() { must(t, errors.Join(srv.Close(), <-served)) }()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var probes atomic.Int32
	c := dial(t, addr, Options{Timeout: 4 * time.Second, Trace: func(sent bool, frame []byte) {
		if h, err := wire.ParseHeader(frame); err == nil && !sent && h.Tag == probeTag && probes.Add(1) == 3 {
			cancel()
		}
	}})
	defer c.Close()
	root := attach(t, c, "")
	if _, err := root.Open(t.Context(), p9.ReadOnly); err != nil {
		t.Fatal(err)
	}
	if _, err := root.Read(ctx, make([]byte, 10), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("read: %v", err)
	}
	if err := c.Err(); err != nil || probes.Load() < 3 {
		t.Errorf("after %d probes: %v", probes.Load(), err)
	}
}
