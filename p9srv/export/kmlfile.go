package export

import (
	"context"
	"errors"
	"io"
	"syscall"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// kmlHandle reads the log as one raw file. What is appended while it is open can
// be read on.
type kmlHandle struct {
	readOnly
	log   *kml.Log
	start kml.Position // what offset 0 stood for at the open
}

func (j *Journal) kmlSize(context.Context) (uint64, error) { return uint64(j.t.Log().Size()), nil }

func (j *Journal) openKML(ctx context.Context, c *tree.Cred, flags int) (tree.ExtHandle, error) {
	if err := only(flags); err != nil {
		return nil, err
	}
	if _, err := j.may(ctx, c, RightFollow, "kml"); err != nil {
		return nil, err
	}
	return &kmlHandle{log: j.t.Log(), start: j.t.Log().Start()}, nil
}

// ReadAt reads the log; ESTALE when retention has taken its beginning since the
// open, which moves every offset.
func (h *kmlHandle) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	n, err := h.log.ReadAt(p, off)
	if h.log.Start() != h.start {
		return 0, syscall.ESTALE
	}
	if n > 0 || errors.Is(err, io.EOF) {
		return n, nil
	}
	return 0, err
}
