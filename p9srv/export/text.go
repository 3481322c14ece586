package export

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/mezzofs/mezzo/kml/tree"
)

// textHandle is a text made at the open.
type textHandle struct {
	readOnly
	text []byte
}

// ReadAt reads the text as it was at the open.
func (h *textHandle) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	if off >= int64(len(h.text)) {
		return 0, nil
	}
	return copy(p, h.text[off:]), nil
}

// Attr tells the size of the text as it was at the open.
func (h *textHandle) Attr() (tree.Attr, bool) { return tree.Attr{}, false }

// textSize is the size of what would be read now.
func textSize(text func() []byte) func(context.Context) (uint64, error) {
	return func(context.Context) (uint64, error) { return uint64(len(text())), nil }
}

// openText opens a text that is made at the open.
func (j *Journal) openText(need Rights, name string, text func() []byte) func(context.Context, *tree.Cred, int) (tree.ExtHandle, error) {
	return func(ctx context.Context, c *tree.Cred, flags int) (tree.ExtHandle, error) {
		if err := only(flags); err != nil {
			return nil, err
		}
		if _, err := j.may(ctx, c, need, name); err != nil {
			return nil, err
		}
		return &textHandle{text: text()}, nil
	}
}

// status is the status file: "key: value" lines.
func (j *Journal) status() []byte {
	s := j.t.Status()
	var b bytes.Buffer
	line := func(key string, value any) { fmt.Fprintf(&b, "%s: %v\n", key, value) }
	line("fileset", s.Fileset)
	line("role", s.Role)
	line("dir", strconv.Quote(s.Dir))
	line("site", s.Site)
	line("epoch", s.End.Epoch())
	line("first", s.First)
	line("end", s.End)
	line("durable", s.Durable)
	line("log_bytes", s.LogBytes)
	line("open_dirty", s.OpenDirty)
	line("stage_bytes", j.stage.used())
	line("clients", j.clients.connected())
	line("started", j.started.UTC().Format(time.RFC3339))
	if s.Failed != "" {
		line("failed", strings.ReplaceAll(s.Failed, "\n", " "))
	}
	if j.o.Status != nil {
		j.o.Status(line)
	}
	return b.Bytes()
}
