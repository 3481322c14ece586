package export

import (
	"bytes"
	"context"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml/tree"
)

// maxCtl is how long a line of ctl may be, in bytes.
const maxCtl = 4096

// ctlHandle is ctl, open: each line that is written is obeyed before the write is
// answered. There is nothing to read.
type ctlHandle struct {
	textHandle
	j    *Journal
	cred *tree.Cred

	mu   sync.Mutex
	rest []byte // of a line that has no end yet
}

func (j *Journal) openCtl(ctx context.Context, c *tree.Cred, flags int) (tree.ExtHandle, error) {
	if _, err := j.may(ctx, c, RightAdmin, "ctl"); err != nil {
		return nil, err
	}
	if flags&unix.O_ACCMODE == unix.O_RDONLY {
		return nil, syscall.EACCES
	}
	return &ctlHandle{j: j, cred: c}, nil
}

// WriteAt takes lines, wherever they are written to. A line that cannot be obeyed
// fails the write, and what stood behind it is not looked at.
func (h *ctlHandle) WriteAt(ctx context.Context, p []byte, _ int64) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.rest)+len(p) > maxCtl {
		h.rest = nil
		return 0, syscall.EFBIG
	}
	text := append(h.rest, p...)
	h.rest = nil
	for {
		line, after, whole := bytes.Cut(text, []byte("\n"))
		if !whole {
			h.rest = bytes.Clone(line)
			return len(p), nil
		}
		if err := h.j.t.Control(ctx, h.cred, string(line)); err != nil {
			h.j.log.Info("a line of ctl was not obeyed", "line", string(line), "err", err)
			return 0, err
		}
		text = after
	}
}

// Fsync has nothing left to do.
func (h *ctlHandle) Fsync(context.Context, bool) error { return nil }
