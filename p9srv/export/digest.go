package export

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// digestHandle answers questions of who compares this tree with another one. A
// question is a line that is written, an answer is lines that are read:
//
//	choice                choice OPTIONS
//	tree OPTIONS          progress NAMES BYTES, again and again; root ENTRY
//	list REF              ENTRY, as many as there are; end
//	look PARENT "NAME"    at POSITION known|unknown; ENTRY, or none
//
// "error TEXT" ends any answer. Questions are answered in turn.
type digestHandle struct {
	j  *Journal
	s  *stream
	id Identity

	ctx    context.Context
	cancel context.CancelFunc
	asked  chan string // questions that wait

	mu      sync.Mutex // guards what follows
	opts    tree.DigestOptions
	digest  *tree.Digest // of the last tree
	ref     int64        // of the next piece of a list; 0: no list goes on
	walking *treeWalk
	rest    []byte // of a question without its end
	closed  bool
}

// treeWalk is a tree that is being read.
type treeWalk struct {
	done   chan struct{} // closed when what follows is there
	digest *tree.Digest
	err    error

	mu           sync.Mutex
	names, bytes int64
}

const (
	digestQuestions = 64
	digestProgress  = 500 * time.Millisecond
	maxQuestion     = 64 << 10 // bytes
)

func (j *Journal) openDigest(ctx context.Context, c *tree.Cred, flags int) (tree.ExtHandle, error) {
	id, err := j.may(ctx, c, RightFollow, "digest")
	if err != nil {
		return nil, err
	}
	if flags&unix.O_ACCMODE != unix.O_RDWR {
		return nil, syscall.EACCES
	}
	h := &digestHandle{j: j, id: id, asked: make(chan string, digestQuestions)}
	h.ctx, h.cancel = context.WithCancel(j.ctx)
	h.s = newStream(h.more)
	return h, nil
}

// WriteAt takes questions.
func (h *digestHandle) WriteAt(_ context.Context, p []byte, _ int64) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	text := append(h.rest, p...)
	h.rest = nil
	for {
		line, after, whole := bytes.Cut(text, []byte("\n"))
		if !whole {
			if len(line) > maxQuestion {
				return 0, syscall.EFBIG
			}
			h.rest = bytes.Clone(line)
			return len(p), nil
		}
		select {
		case h.asked <- string(line):
		default:
			return 0, syscall.EAGAIN
		}
		text = after
	}
}

// ReadAt reads answers on.
func (h *digestHandle) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return h.s.readAt(ctx, p, off)
}

// Attr says nothing: a stream has no size.
func (h *digestHandle) Attr() (tree.Attr, bool) { return tree.Attr{}, false }

// Close ends what goes on. No read is going on.
func (h *digestHandle) Close() error {
	h.cancel()
	h.mu.Lock()
	w, d := h.walking, h.digest
	h.walking, h.digest, h.closed = nil, nil, true
	h.mu.Unlock()
	if w != nil {
		<-w.done
		if w.digest != nil {
			_ = w.digest.Close()
		}
	}
	if d != nil {
		return d.Close()
	}
	return nil
}

// more makes the next piece of an answer; it waits for a question. Reads take
// turns, so one is under way at a time.
func (h *digestHandle) more(ctx context.Context, b []byte, _ int) ([]byte, error) {
	h.mu.Lock()
	w, ref := h.walking, h.ref
	h.mu.Unlock()
	if w != nil {
		return h.walked(ctx, b, w)
	}
	if ref != 0 {
		return h.list(b, ref), nil
	}
	select {
	case q := <-h.asked:
		return h.answer(ctx, b, q), nil
	case <-ctx.Done():
		return b, ctx.Err()
	case <-h.ctx.Done():
		return b, io.EOF
	}
}

func failed(b []byte, err error) []byte {
	return fmt.Appendf(b, "error %s\n", strings.ReplaceAll(err.Error(), "\n", " "))
}

// answer begins an answer.
func (h *digestHandle) answer(ctx context.Context, b []byte, question string) []byte {
	word, rest, _ := strings.Cut(question, " ")
	switch word {
	case "choice":
		return fmt.Appendf(b, "choice %s\n", h.j.t.DigestChoice())
	case "tree":
		o, err := tree.ParseDigestOptions(rest)
		if err != nil {
			return failed(b, err)
		}
		return h.walk(b, o)
	case "list":
		ref, err := strconv.ParseInt(rest, 10, 64)
		if err == nil && ref <= 0 {
			err = syscall.EINVAL
		}
		if err != nil {
			return failed(b, err)
		}
		return h.list(b, ref)
	case "look":
		return h.look(ctx, b, rest)
	}
	return failed(b, fmt.Errorf("%q is no question: %w", word, syscall.EINVAL))
}

// walk begins to read a tree.
func (h *digestHandle) walk(b []byte, o tree.DigestOptions) []byte {
	w := &treeWalk{done: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.digest != nil {
		_ = h.digest.Close()
	}
	h.digest, h.opts = nil, o
	began := !h.closed && h.j.run(func() {
		defer close(w.done)
		w.digest, w.err = h.j.t.MakeDigest(h.ctx, o, func(names, bytes int64) {
			w.mu.Lock()
			w.names, w.bytes = max(w.names, names), max(w.bytes, bytes)
			w.mu.Unlock()
		})
	})
	if !began {
		return failed(b, syscall.ESHUTDOWN)
	}
	h.walking = w
	return append(b, "progress 0 0\n"...)
}

// walked waits for a tree, and tells how far it is.
func (h *digestHandle) walked(ctx context.Context, b []byte, w *treeWalk) ([]byte, error) {
	t := time.NewTimer(digestProgress)
	defer t.Stop()
	select {
	case <-t.C:
		w.mu.Lock()
		defer w.mu.Unlock()
		return fmt.Appendf(b, "progress %d %d\n", w.names, w.bytes), nil
	case <-ctx.Done():
		return b, ctx.Err()
	case <-w.done:
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.walking = nil
	if w.err != nil {
		return failed(b, w.err), nil
	}
	h.digest = w.digest
	b = fmt.Appendf(b, "progress %d %d\nroot ", w.names, w.bytes)
	return append(w.digest.Root.AppendText(b), '\n'), nil
}

// list goes on with the entries of a folder.
func (h *digestHandle) list(b []byte, ref int64) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ref = 0
	if h.digest == nil {
		return failed(b, fmt.Errorf("no tree was asked for: %w", syscall.EINVAL))
	}
	lines, next, err := h.digest.List(ref)
	if err != nil {
		return failed(b, err)
	}
	b = append(b, lines...)
	if h.ref = next; next == 0 {
		b = append(b, "end\n"...)
	}
	return b
}

// look tells what a name holds now.
func (h *digestHandle) look(ctx context.Context, b []byte, rest string) []byte {
	parent, name, ok := strings.Cut(rest, " ")
	var oid kml.OID
	err := oid.UnmarshalText([]byte(parent))
	if err == nil && ok {
		name, err = strconv.Unquote(name)
	}
	if err != nil || !ok {
		return failed(b, fmt.Errorf("look %q: %w", rest, syscall.EINVAL))
	}
	h.mu.Lock()
	o := h.opts
	h.mu.Unlock()
	e, at, known, err := h.j.t.DigestOf(ctx, oid, name, o)
	if err != nil {
		return failed(b, err)
	}
	word := "unknown"
	if known {
		word = "known"
	}
	b = fmt.Appendf(b, "at %d %s\n", uint64(at), word)
	if e == nil {
		return append(b, "none\n"...)
	}
	return append(e.AppendText(b), '\n')
}
