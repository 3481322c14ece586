package export

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/tree"
)

// snapshotHandle streams a tree at one position. A goroutine walks the index and
// waits whenever the reader has not taken what it made; what is held meanwhile
// is a few pieces of the stream, and the view of the index. A reader that stays
// away ends it.
type snapshotHandle struct {
	j   *Journal
	id  Identity
	s   *stream
	req request

	ctx    context.Context
	cancel context.CancelCauseFunc
	chunks chan []byte // closed by the walk at its end
	tail   []byte      // what the walk leaves when it closes chunks
	start  sync.Once
	idle   *time.Timer
}

// snapshotChunk is about how much the walk makes before it hands on, in bytes;
// it is snapshotAhead such pieces ahead of the reader.
const (
	snapshotChunk = 64 << 10
	snapshotAhead = 2
)

var errIdle = errors.New("the reader stayed away")

func (j *Journal) openSnapshot(ctx context.Context, c *tree.Cred, flags int) (tree.ExtHandle, error) {
	id, err := j.may(ctx, c, RightFollow, "snapshot")
	if err != nil {
		return nil, err
	}
	h := &snapshotHandle{j: j, id: id, chunks: make(chan []byte, snapshotAhead)}
	h.ctx, h.cancel = context.WithCancelCause(j.ctx)
	h.s = newStream(h.more)
	return h, nil
}

// WriteAt takes the request line.
func (h *snapshotHandle) WriteAt(_ context.Context, p []byte, _ int64) (int, error) {
	return h.req.write(p)
}

// ReadAt reads the stream on; 0, nil at its end.
func (h *snapshotHandle) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	h.start.Do(func() {
		h.idle = time.AfterFunc(h.j.o.Idle, func() { h.cancel(errIdle) })
		if !h.j.run(h.walk) {
			close(h.chunks)
		}
	})
	h.idle.Reset(h.j.o.Idle)
	return h.s.readAt(ctx, p, off)
}

// Attr says nothing: a stream has no size.
func (h *snapshotHandle) Attr() (tree.Attr, bool) { return tree.Attr{}, false }

// Close ends the walk and waits for it. No read is going on.
func (h *snapshotHandle) Close() error {
	h.cancel(nil)
	h.start.Do(func() { close(h.chunks) }) // never began
	if h.idle != nil {
		h.idle.Stop()
	}
	for range h.chunks {
	}
	return nil
}

func (h *snapshotHandle) more(ctx context.Context, b []byte, _ int) ([]byte, error) {
	select {
	case c, ok := <-h.chunks:
		if !ok {
			b, h.tail = append(b, h.tail...), nil
			return b, io.EOF
		}
		return append(b, c...), nil
	case <-ctx.Done():
		return b, ctx.Err()
	}
}

// walk makes the stream. It is the only sender on chunks.
func (h *snapshotHandle) walk() {
	defer close(h.chunks)
	q := feed.SnapshotRequest{OID: kml.RootOID, Depth: -1}
	if line := h.req.take(); line != "" {
		var err error
		if q, err = feed.ParseSnapshotRequest(line); err != nil {
			h.fail(nil, err)
			return
		}
	}
	var b, buf []byte
	var count uint64
	add := func(m feed.Message) (err error) {
		if b, err = feed.Append(b, m); err != nil || len(b) < snapshotChunk {
			return err
		}
		full := b
		b = nil
		return h.send(full)
	}
	_, err := h.j.t.Snapshot(h.ctx, q.OID, q.Depth,
		func(p kml.Position) error {
			crc, err := h.j.t.Log().CRCAt(p)
			if err != nil {
				return err
			}
			return add(&feed.SnapBegin{Position: p, OID: q.OID, CRC: crc})
		},
		func(e tree.SnapshotEntry) error {
			count++
			m := feed.Entry{Record: e.Record, Version: e.Version, DataVersion: e.DataVersion}
			if e.Record.Op != kml.OpCreate || e.Record.Attr.Size > uint64(q.Inline) || e.Record.Attr.Size == 0 {
				return add(&m)
			}
			data, _ := h.j.contents(e.Record.OID, e.DataVersion, e.Record.Attr.Size, &buf)
			if data == nil {
				return add(&m)
			}
			return add(&feed.EntryData{Entry: m, Data: data})
		})
	if err == nil {
		err = add(&feed.SnapEnd{Count: count})
	}
	if err != nil {
		if h.ctx.Err() != nil {
			err = context.Cause(h.ctx) // why, and not only that it ended
		}
		h.fail(b, err)
		return
	}
	h.tail = b
}

func (h *snapshotHandle) send(b []byte) error {
	select {
	case h.chunks <- b:
		return nil
	case <-h.ctx.Done():
		return context.Cause(h.ctx)
	}
}

// fail leaves what went wrong as the stream's last frame.
func (h *snapshotHandle) fail(b []byte, err error) {
	b, err = h.j.failure(b, err, "snapshot", h.id)
	if err == nil {
		h.tail = b
	}
}
