package export

import (
	"context"
	"errors"
	"io"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/tree"
)

// reintHandle takes a client's records and answers with what became of them. The
// writer's frames are decoded as they come; a goroutine of the handle's own
// applies them, so that neither a flushed write nor a flushed read changes what
// happens to a record.
type reintHandle struct {
	j      *Journal
	id     Identity
	cred   *tree.Cred
	door   tree.Door
	s      *stream
	client *client

	in     chan struct{} // holds a token while a write is going on
	writer decoder

	frames chan feed.Message // from the writer to the session
	out    outbox

	ctx    context.Context // ends with the handle, the journal, or a newer session
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when the session has ended
}

// decoder is the writing half: a stream of bytes by offset.
type decoder struct {
	feed.Decoder
	began bool
	next  int64        // offset of the first byte that has not come yet
	held  feed.Message // decoded, and not handed on before the write ended
	err   error
}

// outbox holds answers until they are read.
type outbox struct {
	mu    sync.Mutex
	b     []byte
	ended bool
	more  chan struct{} // has a token when there may be something
	room  chan struct{} // has a token when something was read
}

// outboxMax is how many bytes of answers wait to be read before no further batch
// is begun.
const outboxMax = 1 << 20

var errReplaced = errors.New("a newer session of this site began")

func (j *Journal) openReint(ctx context.Context, c *tree.Cred, flags int) (tree.ExtHandle, error) {
	id, err := j.may(ctx, c, RightWrite, "reint")
	if err != nil {
		return nil, err
	}
	if flags&unix.O_ACCMODE != unix.O_RDWR {
		return nil, syscall.EINVAL
	}
	h := &reintHandle{
		j: j, id: id, cred: c, door: tree.DoorOf(ctx), client: j.clients.open(id, modeWrite, j.o.Now()),
		in: make(chan struct{}, 1), frames: make(chan feed.Message, 1), done: make(chan struct{}),
		out: outbox{more: make(chan struct{}, 1), room: make(chan struct{}, 1)},
	}
	h.ctx, h.cancel = context.WithCancelCause(tree.WithDoor(j.ctx, h.door))
	h.s = newStream(h.more)
	if !j.run(h.session) {
		j.clients.close(h.client, modeWrite, j.o.Now())
		h.cancel(nil)
		return nil, syscall.ESHUTDOWN
	}
	return h, nil
}

// WriteAt takes bytes of frames, in order. Bytes at offsets that have come
// before are skipped: a write may be sent again. It waits while the session has
// enough to do.
func (h *reintHandle) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	select {
	case h.in <- struct{}{}:
		defer func() { <-h.in }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if h.ctx.Err() != nil {
		return 0, syscall.EPIPE
	}
	h.client.seen(h.j.o.Now())
	w := &h.writer
	if !w.began {
		w.began, w.next = true, off
	}
	if off > w.next {
		return 0, syscall.ESPIPE
	}
	if skip := w.next - off; skip < int64(len(p)) {
		if _, err := w.Write(p[skip:]); err != nil {
			return 0, syscall.EPROTO
		}
		w.next = off + int64(len(p))
	}
	if err := h.pump(ctx); err != nil {
		return 0, err
	}
	return len(p), nil
}

// pump hands whole frames to the session. What it cannot hand on before ctx ends
// is handed on by the next write.
func (h *reintHandle) pump(ctx context.Context) error {
	w := &h.writer
	for {
		if w.held == nil && !w.decode() {
			if w.err != nil {
				h.cancel(w.err)
				return syscall.EPROTO
			}
			return nil
		}
		select {
		case h.frames <- w.held:
			w.held = nil
		case <-h.ctx.Done():
			return syscall.EPIPE
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// decode reads the next message; false when none is whole, or on an error.
func (w *decoder) decode() bool {
	for w.err == nil && w.held == nil {
		f, ok, err := w.Next()
		if err == nil && !ok {
			return false
		}
		if err == nil {
			w.held, err = f.Message()
		}
		w.err = err
	}
	return w.err == nil
}

// ReadAt answers with what there is, and waits while there is nothing.
func (h *reintHandle) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return h.s.readAt(ctx, p, off)
}

func (h *reintHandle) more(ctx context.Context, b []byte, _ int) ([]byte, error) {
	for {
		o := &h.out
		o.mu.Lock()
		b, o.b = append(b, o.b...), nil
		ended := o.ended
		o.mu.Unlock()
		token(o.room)
		if ended {
			return b, io.EOF
		}
		if len(b) > 0 {
			return b, nil
		}
		select {
		case <-o.more:
		case <-ctx.Done():
			return b, ctx.Err()
		}
	}
}

// token puts a token into c unless it has one.
func token(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Attr says nothing: a stream has no size.
func (h *reintHandle) Attr() (tree.Attr, bool) { return tree.Attr{}, false }

// Close ends the session and waits until the record that is being applied is.
func (h *reintHandle) Close() error {
	h.cancel(nil)
	<-h.done
	h.j.clients.close(h.client, modeWrite, h.j.o.Now())
	return nil
}

// answer puts a message where reads find it; it waits while too much is unread.
func (h *reintHandle) answer(m feed.Message) error {
	o := &h.out
	for {
		o.mu.Lock()
		if len(o.b) < outboxMax {
			b, err := feed.Append(o.b, m)
			o.b = b
			o.mu.Unlock()
			token(o.more)
			return err
		}
		o.mu.Unlock()
		select {
		case <-o.room:
		case <-h.ctx.Done():
			return context.Cause(h.ctx)
		}
	}
}

// session is the session's goroutine: a hello, then batches until the handle
// closes, a newer session begins or something is wrong.
func (h *reintHandle) session() {
	defer close(h.done)
	s := &reintSession{h: h, ended: make(chan struct{})}
	err := s.serve()
	s.leave()
	o := &h.out
	o.mu.Lock()
	defer o.mu.Unlock()
	o.b, _ = h.failure(o.b, err)
	o.ended = true
	token(o.more)
}

func (h *reintHandle) failure(b []byte, err error) ([]byte, error) {
	if errors.Is(err, errReplaced) {
		return feed.Append(b, &feed.Failure{Code: feed.CodeReplaced, Text: err.Error()})
	}
	return h.j.failure(b, err, "reint", h.id)
}

// next is the next message of the client.
func (h *reintHandle) next() (feed.Message, error) {
	select {
	case m := <-h.frames:
		return m, nil
	case <-h.ctx.Done():
		return nil, context.Cause(h.ctx)
	}
}
