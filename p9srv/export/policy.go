package export

import (
	"bytes"
	"context"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml/conflict"
	"github.com/mezzofs/mezzo/kml/tree"
)

// maxPolicy is how long the text of policies may be, in bytes.
const maxPolicy = 64 << 10

// policyHandle is the policy, open: the text as it was at the open, and what is
// written to replace it.
type policyHandle struct {
	textHandle
	j    *Journal
	cred *tree.Cred
	may  bool // write
	ctx  context.Context

	mu      sync.Mutex
	written []byte
	set     int  // bytes of written that were put in force
	cut     bool // opened to be emptied
}

func (j *Journal) openPolicy(ctx context.Context, c *tree.Cred, flags int) (tree.ExtHandle, error) {
	need, writes := RightFollow, flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_TRUNC != 0
	if writes {
		need = RightAdmin
	}
	if _, err := j.may(ctx, c, need, "policy"); err != nil {
		return nil, err
	}
	// The text is put in force by whoever writes, also when the call that closes
	// the file has ended.
	return &policyHandle{textHandle: textHandle{text: j.t.Policy()}, j: j, cred: c, may: writes, ctx: j.ctx, cut: flags&unix.O_TRUNC != 0}, nil
}

// WriteAt takes the text; what ends with a line's end is put in force.
func (h *policyHandle) WriteAt(_ context.Context, p []byte, off int64) (int, error) {
	if !h.may {
		return 0, syscall.EBADF
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case off > int64(len(h.written)):
		return 0, syscall.ESPIPE
	case off+int64(len(p)) > maxPolicy:
		return 0, syscall.EFBIG
	}
	h.cut = false
	h.written = append(h.written[:off], p...)
	if bytes.HasSuffix(h.written, []byte("\n")) {
		if err := h.put(); err != nil {
			h.written = h.written[:off]
			return 0, err
		}
	}
	return len(p), nil
}

// put puts what was written in force. The caller holds mu.
func (h *policyHandle) put() error {
	text := bytes.Clone(h.written)
	err := h.j.t.SetPolicy(h.ctx, h.cred, text, func(b []byte) error {
		_, err := conflict.ParsePolicies(b)
		return err
	})
	if err != nil {
		h.j.log.Info("a policy was not taken", "err", err)
		return err
	}
	h.set = len(text)
	return nil
}

// Fsync is a commit: what is in force is durable.
func (h *policyHandle) Fsync(context.Context, bool) error { return nil }

// Close puts a last line without an end in force.
func (h *policyHandle) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cut || len(h.written) > h.set {
		return h.put()
	}
	return nil
}
