package p9srv

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/mezzofs/mezzo/p9srv/wire"
)

// A request is a message that was not answered on the connection's own
// goroutine: it waits for a slot or a worker, or runs.
type request struct {
	call
	reqContext
	buf     []byte     // holds call.body
	cost    int        // bytes it counts for
	need    int        // slots it still waits for
	started bool       // a worker has it
	dropped bool       // flushed before it started: no answer
	flushes []wire.Tag // Tflush messages that wait for it
}

// reqContext is a request's context: it ends when the request does, is flushed,
// or the session ends.
type reqContext struct {
	parent context.Context // for values only

	mu   sync.Mutex
	done chan struct{}
	err  error
}

func (c *reqContext) Deadline() (time.Time, bool) { return time.Time{}, false }
func (c *reqContext) Value(key any) any           { return c.parent.Value(key) }

func (c *reqContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
		if c.err != nil {
			close(c.done)
		}
	}
	return c.done
}

func (c *reqContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *reqContext) cancel() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = context.Canceled
	if c.done != nil {
		close(c.done)
	}
}

// maxIdle is how many workers of a session stay when there is nothing to do.
const maxIdle = 1

// stuckAfter is how long a request waits for a worker before more are started:
// those there are may all be waiting for something.
const stuckAfter = time.Millisecond

// start puts r, and the slots it needs, in order. s.mu is held, r.tag is free.
func (s *session) start(r *request) {
	s.tags[r.tag] = r
	s.pending++
	for _, h := range r.holds() {
		if h.sl.free(h.alone) {
			h.sl.take(h.alone)
		} else {
			h.sl.queue = append(h.sl.queue, r)
			r.need++
		}
	}
	if r.need == 0 {
		s.runnable(r)
	}
}

// A hold is a slot a request holds or waits for.
type hold struct {
	sl    *slot
	alone bool
}

// holds is which slots c needs, each once.
func (c *call) holds() []hold {
	switch {
	case c.a == nil:
		return nil
	case c.b == nil || c.b == c.a:
		return []hold{{c.a, c.aloneA || c.b == c.a && c.aloneB}}
	}
	return []hold{{c.a, c.aloneA}, {c.b, c.aloneB}}
}

func (c *call) aloneOn(sl *slot) bool {
	return sl == c.a && c.aloneA || sl == c.b && c.aloneB
}

func (sl *slot) take(alone bool) {
	if alone {
		sl.excl = true
	} else {
		sl.shared++
	}
}

// release gives r's slots to those who wait for them. s.mu is held.
func (s *session) release(r *request) {
	for _, h := range r.holds() {
		sl := h.sl
		if h.alone {
			sl.excl = false
		} else {
			sl.shared--
		}
		for len(sl.queue) > 0 {
			next := sl.queue[0]
			alone := next.aloneOn(sl)
			if sl.excl || alone && sl.shared > 0 {
				break
			}
			sl.queue = sl.queue[1:]
			sl.take(alone)
			if next.need--; next.need == 0 {
				s.runnable(next)
			}
		}
		s.sweep(sl)
	}
}

// sweep forgets a slot that holds nothing. s.mu is held.
func (s *session) sweep(sl *slot) {
	if sl.excl || sl.shared > 0 || len(sl.queue) > 0 {
		// Somebody's, who may be changing it.
		return
	}
	if !sl.live {
		delete(s.fids, sl.num)
	}
}

// runnable hands r to a worker. s.mu is held.
func (s *session) runnable(r *request) {
	if r.joinable() && !r.a.joins(r) {
		return
	}
	s.runq = append(s.runq, r)
	switch {
	case s.idle > 0:
		// It is woken for r: it does not count as idle for the next one.
		s.idle--
		s.work.Signal()
	case s.workers < s.srv.fewWorkers:
		s.addWorker()
	case !s.watching:
		s.watching = true
		s.group.Add(1)
		time.AfterFunc(stuckAfter, s.unstick)
	}
}

func (s *session) addWorker() {
	s.workers++
	s.group.Add(1)
	go s.worker()
}

// unstick starts more workers while requests stand in line.
func (s *session) unstick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.group.Done()
	for n := min(len(s.runq), s.workers); n > 0; n-- {
		s.addWorker()
	}
	s.watching = len(s.runq) > 0
	if s.watching {
		s.group.Add(1)
		time.AfterFunc(stuckAfter, s.unstick)
	}
}

// worker runs requests until there are none and others are idle already.
func (s *session) worker() {
	defer s.group.Done()
	s.mu.Lock()
	for {
		for len(s.runq) == 0 {
			if s.idle >= maxIdle || s.ending {
				s.workers--
				s.mu.Unlock()
				return
			}
			s.idle++
			s.work.Wait()
		}
		r := s.runq[0]
		s.runq[0] = nil
		s.runq = s.runq[1:]
		if r.joinable() {
			s.runSyncs(r.a)
			continue
		}
		r.started = true
		skip := r.dropped || s.muted
		s.mu.Unlock()
		s.run(r, skip)
		s.mu.Lock()
	}
}

// run runs a request on a worker and queues its answer.
func (s *session) run(r *request, skip bool) {
	if !skip {
		r.begin()
		r.finishAnswer(r.invoke())
	}
	r.cancel()
	s.mu.Lock()
	s.over(r)
	s.mu.Unlock()
	s.q.flush(true)
}

// begin makes r ready for its handler.
func (r *request) begin() {
	r.out = r.s.srv.bufs.get(0)
	r.ctx = &r.reqContext
}

// over ends a request and queues its answer. s.mu is held.
func (s *session) over(r *request) {
	if s.tags[r.tag] == r {
		delete(s.tags, r.tag)
	}
	for _, t := range r.flushes {
		delete(s.tags, t)
		r.out = (&wire.Rflush{}).Append(r.out, t)
	}
	switch {
	case s.muted:
		s.q.forget(r.pieces())
	case r.pipe != nil:
		s.q.addPieces(r.pieces()...)
	case len(r.out) > 0:
		s.send(r.out)
	case r.out != nil:
		s.srv.bufs.put(r.out)
	}
	r.out, r.pipe = nil, nil
	s.release(r)
	s.pending--
	if s.pending == 0 {
		s.quiet.Broadcast()
	}
	s.srv.bufs.put(r.buf)
	s.q.hold(-r.cost)
}

// flush is Tflush: the answer comes when old is over, at once when it has not
// started or is not known.
func (s *session) flush(tag, old wire.Tag) error {
	s.srv.count.flushes.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tags[tag] != nil {
		return errTag(tag)
	}
	r := s.tags[old]
	switch {
	case r == nil || old == tag:
	case r.started || r.tag != old:
		// A flush of a flush waits with it.
		s.tags[tag] = r
		r.flushes = append(r.flushes, tag)
		r.cancel()
		return nil
	default:
		r.dropped = true
		r.cancel()
		delete(s.tags, old)
		for _, t := range r.flushes {
			delete(s.tags, t)
			s.out = (&wire.Rflush{}).Append(s.out, t)
		}
		r.flushes = nil
	}
	s.out = (&wire.Rflush{}).Append(s.out, tag)
	return nil
}

func errTag(tag wire.Tag) error { return fmt.Errorf("%w: tag %d is in use", ErrProtocol, tag) }

// quiesce cancels every request and waits until the last is over. Their
// answers are not sent.
func (s *session) quiesce() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.muted = true
	for _, r := range s.tags {
		r.cancel()
	}
	for s.pending > 0 {
		s.quiet.Wait()
	}
	s.muted = false
}

// clunkAll closes every fid of a session that is over or restarts.
func (s *session) clunkAll() {
	s.mu.Lock()
	fids := s.fids
	s.fids = map[wire.FID]*slot{}
	s.mu.Unlock()
	ctx := &reqContext{parent: s.ctx}
	ctx.cancel()
	for _, sl := range fids {
		if !sl.live {
			continue
		}
		s.srv.count.fids.Add(-1)
		if err := s.guard(func() error { return sl.clear(ctx) }); err != nil {
			s.log("9p close of a lost fid", err, "fid", sl.num)
		}
	}
}
