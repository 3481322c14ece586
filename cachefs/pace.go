package cachefs

import (
	"context"
	"sync"
	"time"
)

// pacer bounds how many bytes are on their way to the master and not answered, or
// asked for and not here, so that what is small does not wait behind what is large, a write is answered
// long before the link counts as dead, and nobody has to say how fast the link
// is: the window grows while answers come within paceFast and shrinks when they
// take longer than paceSlow.
type pacer struct {
	// most bounds the window, 0 is no bound; it is asked each time.
	most func() int

	mu      sync.Mutex // guards what follows
	window  int
	used    int
	urgent  int           // waiters that large contents let go first
	changed chan struct{} // closed when one of them changes
	shrunk  time.Time
}

// Bounds of the window and of a piece, in bytes, and the times that an answer
// takes between which the window stays as it is.
const (
	paceLeast = 4 << 10
	paceFirst = 128 << 10
	paceMost  = 8 << 20
	pieceMost = 1 << 20
	paceFast  = 300 * time.Millisecond
	paceSlow  = time.Second
)

func newPacer(most func() int) *pacer {
	return &pacer{most: most, window: paceFirst, changed: make(chan struct{})}
}

// room is the window now. The caller holds mu.
func (p *pacer) room() int {
	w := p.window
	if m := p.most(); m > 0 {
		w = min(w, m)
	}
	return max(w, paceLeast)
}

// Window is how many bytes the link takes in about a second, as far as it is
// known, at most paceMost.
func (p *pacer) Window() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.room()
}

// wake wakes who waits. The caller holds mu.
func (p *pacer) wake() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// acquire waits for room and says how many of want bytes may go as one piece.
func (p *pacer) acquire(ctx context.Context, want int, urgent bool) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if urgent {
		p.urgent++
		defer func() {
			p.urgent--
			p.wake()
		}()
	}
	for {
		w := p.room()
		n := min(want, pieceMost, max(w/4, paceLeast))
		if (p.used == 0 || p.used+n <= w) && (urgent || p.urgent == 0) {
			p.used += n
			return n, nil
		}
		changed := p.changed
		p.mu.Unlock()
		var err error
		select {
		case <-changed:
		case <-ctx.Done():
			err = ctx.Err()
		}
		p.mu.Lock()
		if err != nil {
			return 0, err
		}
	}
}

// release gives a piece's room back; took is how long its answer did, and it is
// 0 when there was none.
func (p *pacer) release(n int, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used -= n
	now := time.Now()
	switch {
	case took == 0:
	case took > paceSlow && now.Sub(p.shrunk) > took: // pieces of one window are slow together
		p.window = max(p.window/2, paceLeast)
		p.shrunk = now
	case took < paceFast:
		p.window = min(p.window+n, paceMost)
	}
	p.wake()
}

// readAt fills p by pieces, unless the file ends. It takes as long as the link
// does: whether that lives is not for it to say.
func (p *pacer) readAt(ctx context.Context, f linkFile, b []byte, off int64) (int, error) {
	done := 0
	for done < len(b) {
		n, err := p.acquire(ctx, len(b)-done, false)
		if err != nil {
			return done, err
		}
		began := time.Now()
		m, err := f.ReadAt(ctx, b[done:done+n], off+int64(done))
		took := max(time.Since(began), 1)
		if err != nil {
			took = 0
		}
		p.release(n, took)
		if done += m; err != nil || m < n {
			return done, err
		}
	}
	return done, nil
}

// write sends b at off by pieces.
func (p *pacer) write(ctx context.Context, f linkFile, b []byte, off int64, urgent bool) error {
	for len(b) > 0 {
		n, err := p.acquire(ctx, len(b), urgent)
		if err != nil {
			return err
		}
		began := time.Now()
		m, err := writeAll(ctx, f, b[:n], off)
		took := max(time.Since(began), 1)
		if err != nil {
			took = 0
		}
		p.release(n, took)
		if err != nil {
			return err
		}
		b, off = b[m:], off+int64(m)
	}
	return nil
}
