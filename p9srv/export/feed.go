package export

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/tree"
)

// request is a line that a reader of a stream writes before it reads.
type request struct {
	mu     sync.Mutex
	line   []byte
	closed bool // reading has begun
}

// write takes a piece of the line. Offsets do not matter: the descriptor may
// have been written through before.
func (r *request) write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed, bytes.IndexByte(r.line, '\n') >= 0:
		return 0, syscall.EBUSY
	case len(r.line)+len(p) > feed.MaxLine:
		return 0, syscall.EINVAL
	}
	r.line = append(r.line, p...)
	return len(p), nil
}

// take ends the writing and gives the line; empty when none was written.
func (r *request) take() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	return strings.TrimSuffix(string(r.line), "\n")
}

// feedHandle follows the log for one reader.
type feedHandle struct {
	j      *Journal
	s      *stream
	req    request
	client *client

	// The rest belongs to whoever has the stream's turn.
	r       *kml.Reader
	inline  int
	failed  bool
	durable kml.Position // last told
	beat    time.Time    // when a heartbeat was sent last
	damaged uint64       // the last of the tree's damaged files that was told
	buf     []byte
}

func (j *Journal) openFeed(ctx context.Context, c *tree.Cred, flags int) (tree.ExtHandle, error) {
	id, err := j.may(ctx, c, RightFollow, "feed")
	if err != nil {
		return nil, err
	}
	h := &feedHandle{j: j, client: j.clients.open(id, modeFollow, j.o.Now())}
	h.s = newStream(h.more)
	return h, nil
}

// WriteAt takes the request line.
func (h *feedHandle) WriteAt(_ context.Context, p []byte, _ int64) (int, error) {
	return h.req.write(p)
}

// ReadAt answers with what there is, and waits while there is nothing.
func (h *feedHandle) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	h.client.seen(h.j.o.Now())
	return h.s.readAt(ctx, p, off)
}

// Attr says nothing: a stream has no size.
func (h *feedHandle) Attr() (tree.Attr, bool) { return tree.Attr{}, false }

// Close ends the session. No read is going on.
func (h *feedHandle) Close() error {
	h.j.clients.close(h.client, modeFollow, h.j.o.Now())
	if h.r != nil {
		return h.r.Close()
	}
	return nil
}

// more appends frames. It begins with the greeting; then as many records as are
// welcome, and when the log has no more, a heartbeat if it is time for one; with
// nothing to say it waits.
func (h *feedHandle) more(ctx context.Context, b []byte, want int) ([]byte, error) {
	if h.failed {
		return b, io.EOF
	}
	if h.r == nil {
		return h.greet(b)
	}
	// What is asked for now is asked for because all before it has arrived.
	h.client.at(h.r.Pos())
	for {
		changed := h.j.t.Log().Changed()
		b, err := h.records(b, want)
		if err != nil {
			return h.fail(b, err)
		}
		b, found := h.damage(b)
		if b = h.heartbeat(b); len(b) > 0 {
			return b, nil
		}
		if err := h.wait(ctx, changed, found); err != nil {
			return b, err
		}
		if h.j.ctx.Err() != nil {
			return h.fail(b, kml.ErrClosed)
		}
	}
}

// damage appends which files were found damaged since the last look. found is
// closed at the next find.
func (h *feedHandle) damage(b []byte) (_ []byte, found <-chan struct{}) {
	list, last, found := h.j.t.DamagedSince(h.damaged)
	h.damaged = last
	for _, d := range list {
		b, _ = feed.Append(b, &feed.Damaged{OID: d.OID, Version: d.Version})
	}
	return b, found
}

// wait returns at the next change of the log, when a file is found damaged, when
// a heartbeat is due, or when the journal closes.
func (h *feedHandle) wait(ctx context.Context, changed, found <-chan struct{}) error {
	timer := time.NewTimer(h.beat.Add(h.j.o.Heartbeat).Sub(h.j.o.Now()))
	defer timer.Stop()
	select {
	case <-changed:
	case <-found:
	case <-timer.C:
	case <-h.j.ctx.Done():
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// greet reads the request, finds its place in the log, and appends the greeting.
func (h *feedHandle) greet(b []byte) ([]byte, error) {
	var q feed.Request
	line, log := h.req.take(), h.j.t.Log()
	if line != "" {
		var err error
		if q, err = feed.ParseRequest(line); err != nil {
			return h.fail(b, err)
		}
	} else {
		q.From = log.Start() // all that there is
	}
	r, err := log.ReaderAfter(q.From)
	if err != nil {
		return h.fail(b, err)
	}
	if line != "" && q.From != 0 && r.CRC() != q.CRC {
		r.Close()
		return h.fail(b, fmt.Errorf("the record at %s ends with CRC %08x, not %08x: %w", q.From, r.CRC(), q.CRC, kml.ErrHistoryCut))
	}
	id := log.EpochID()
	h.r, h.inline, h.durable, h.beat = r, q.Inline, h.j.t.Durable(), h.j.o.Now()
	h.j.log.Debug("feed begins", "peer", h.client.id.Peer, "uid", h.client.id.UID, "position", q.From.String())
	return feed.Append(b, &feed.Greeting{
		Version: feed.Version, Fileset: h.j.t.State().Fileset().UUID,
		Epoch: log.Epoch(), EpochID: hex.EncodeToString(id[:]),
		First: log.First(), End: log.End(), Durable: h.durable,
	})
}

// records appends what the log has, up to want bytes and the record that passes
// it.
func (h *feedHandle) records(b []byte, want int) ([]byte, error) {
	for len(b) < want {
		raw, err := h.r.TryNextRaw()
		if errors.Is(err, io.EOF) {
			return b, nil
		}
		if err != nil {
			return b, err
		}
		if b, err = h.record(b, raw); err != nil {
			return b, err
		}
	}
	return b, nil
}

// record appends one record, with the contents when it left some, and that version
// is still to be had and small enough. Of an object that is being written the
// reader is told so: its store would be out of date when it arrives.
func (h *feedHandle) record(b []byte, raw kml.Raw) ([]byte, error) {
	if h.inline == 0 || raw.Op != kml.OpStore && raw.Op != kml.OpCreate {
		return feed.AppendRaw(b, raw, nil)
	}
	r, err := raw.Record()
	if err != nil {
		return b, err
	}
	// A file that was found was made with contents.
	if r.Attr.Size > uint64(h.inline) || r.Op == kml.OpCreate && r.Attr.Size == 0 {
		return feed.AppendRaw(b, raw, nil)
	}
	data, changing := h.j.contents(r.OID, r.Pos, r.Attr.Size, &h.buf)
	if b, err = feed.AppendRaw(b, raw, data); err != nil || !changing {
		return b, err
	}
	return feed.Append(b, &feed.Changing{OID: r.OID})
}

// contents reads the size bytes of version p of an object, into buf; nil when a
// newer version has taken its place. changing says that it is being written.
func (j *Journal) contents(oid kml.OID, p kml.Position, size uint64, buf *[]byte) (data []byte, changing bool) {
	if j.t.Dirty(oid) {
		return nil, true
	}
	v, err := j.t.OpenVersion(j.ctx, oid)
	if err != nil {
		return nil, false // gone, or not to be read: the reader asks itself
	}
	defer v.Close()
	a := v.Attr()
	if a.DataVersion != uint64(p) || a.Size != size {
		return nil, false
	}
	if cap(*buf) < int(size) || *buf == nil {
		*buf = make([]byte, size)
	}
	data = (*buf)[:size]
	n, err := v.ReadAt(j.ctx, data, 0)
	switch {
	case errors.Is(err, syscall.ESTALE):
		return nil, true
	case err != nil || n < len(data):
		return nil, false
	}
	return data, false
}

// heartbeat appends one when the durable position has moved or it is time.
func (h *feedHandle) heartbeat(b []byte) []byte {
	now, durable := h.j.o.Now(), h.j.t.Durable()
	if durable == h.durable && now.Sub(h.beat) < h.j.o.Heartbeat {
		return b
	}
	h.durable, h.beat = durable, now
	b, _ = feed.Append(b, &feed.Heartbeat{End: h.j.t.Log().End(), Durable: durable, Time: now.UnixNano()})
	return b
}

// fail appends what went wrong as the stream's last frame.
func (h *feedHandle) fail(b []byte, err error) ([]byte, error) {
	h.failed = true
	return h.j.failure(b, err, "feed", h.client.id)
}

// failure appends a Failure frame. The error behind it goes to the log where it
// is the master's own.
func (j *Journal) failure(b []byte, err error, file string, id Identity) ([]byte, error) {
	f := &feed.Failure{Code: codeOf(err), Text: err.Error()}
	if f.Code == feed.CodeInternal {
		j.log.Error("stream of the journal extension failed", "path", file, "peer", id.Peer, "uid", id.UID, "err", err)
	}
	return feed.Append(b, f)
}

func codeOf(err error) feed.Code {
	for _, c := range [...]struct {
		err  error
		code feed.Code
	}{
		{kml.ErrHistoryCut, feed.CodeHistoryCut},
		{kml.ErrTruncated, feed.CodeTruncated},
		{kml.ErrNewer, feed.CodeNewer},
		{kml.ErrClosed, feed.CodeStopped},
		{context.Canceled, feed.CodeStopped},
		{errIdle, feed.CodeStopped},
		{feed.ErrRequest, feed.CodeBadRequest},
		{feed.ErrFrame, feed.CodeBadRequest},
		{feed.ErrTooLarge, feed.CodeBadRequest},
		{syscall.EACCES, feed.CodeNotAllowed},
		{syscall.ENOENT, feed.CodeNoObject},
		{syscall.ESTALE, feed.CodeNoObject},
	} {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	return feed.CodeInternal
}
