package client

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mezzofs/mezzo/p9srv/wire"
)

// Tags below flushBit are requests; a request's tag with flushBit set is its
// Tflush, so that a flush never waits for a tag. The probe's tags are above
// every request's.
const (
	flushBit wire.Tag = 0x8000
	probeTag wire.Tag = 0xfff0
	probeOld wire.Tag = 0x7ff0 // never in use: maxTags is below

	maxTags = 0x7000

	// quarantine is how long a flushed tag is not used again.
	quarantine = 250 * time.Millisecond
)

// What has become of a call. Whoever moves it from waiting owns its result.
const (
	callWaiting int32 = iota
	callDelivering
	callAbandoned
)

// call is one request and the place for its answer.
type call struct {
	resp  wire.Msg // decoded into by the reader; its payload points into dst
	dst   []byte   // where the payload of an Rread or Rreaddir goes
	fid   wire.FID // the fid a good answer makes, or NoFID
	err   error    // set before done is signalled
	text  string   // the server's words, where it has no number for its reason
	state atomic.Int32
	done  chan struct{} // one signal, buffered
}

// slot is the state of one tag, guarded by Conn.mu.
type slot struct {
	call     *call     // until it was answered
	want     wire.Type // of the answer
	fid      wire.FID  // as in call
	flushing bool      // a Tflush is out: the tag is not free before its Rflush
	// flushed: Rflush came without the answer. Servers exist that send the
	// answer behind it (hugelgupf/p9), so for the time of a quarantine one such
	// answer is taken and dropped, and the tag not used again.
	flushed bool
}

// request is what roundTrip sends and expects.
type request struct {
	msg  wire.Msg
	resp wire.Msg
	dst  []byte
	fid  wire.FID // the fid a good answer makes, or NoFID
	name string   // for the error
	// keep: the request is not flushed when the context ends, only left alone.
	keep bool
}

// roundTrip sends a request and waits for its answer. dst, and what msg points
// to, are not touched any more when it has returned.
func (c *Conn) roundTrip(ctx context.Context, r request) error {
	if err := ctx.Err(); err != nil && !r.keep {
		return context.Cause(ctx)
	}
	if err := c.enter(ctx, r.keep); err != nil {
		return err
	}
	if err := c.waitDrained(ctx, r.keep); err != nil {
		c.leave()
		return err
	}
	k := &call{resp: r.resp, dst: r.dst, fid: r.fid, done: make(chan struct{}, 1)}
	tag, err := c.send(k, r.msg)
	if err != nil {
		return err
	}
	select {
	case <-k.done:
	case <-ctx.Done():
		if !c.giveUp(tag, k, r.keep) {
			return context.Cause(ctx)
		}
	}
	switch {
	case k.err == nil:
		return nil
	case errors.Is(k.err, errFlushed):
		return context.Cause(ctx)
	case k.err == error(syscall.EINTR) && ctx.Err() != nil:
		return context.Cause(ctx) // the server's word for a flush that cut the request short
	}
	var errno syscall.Errno
	if errors.As(k.err, &errno) && k.err == error(errno) {
		return &Error{Op: r.msg.MsgType().String()[1:], Name: r.name, Errno: errno, Text: k.text}
	}
	return k.err
}

// enter waits until one more request may be in flight.
func (c *Conn) enter(ctx context.Context, keep bool) error {
	done := ctx.Done()
	if keep {
		done = nil // a clunk has to go out; only the connection's end stops it
	}
	select {
	case c.inFlight <- struct{}{}:
		return nil
	case <-done:
		return context.Cause(ctx)
	case <-c.dead:
		return c.failure()
	}
}

// leave is the end of a request that entered.
func (c *Conn) leave() { <-c.inFlight }

// takeTag takes a tag out of use; mu is held. There are enough for all that
// may be in flight and many more in quarantine.
func (c *Conn) takeTag() (wire.Tag, bool) {
	if n := len(c.idle); n > 0 {
		tag := c.idle[n-1]
		c.idle = c.idle[:n-1]
		return tag, true
	}
	if len(c.slots) == maxTags {
		return 0, false
	}
	c.slots = append(c.slots, slot{})
	return wire.Tag(len(c.slots) - 1), true
}

// maxQueued is how many bytes may wait to be sent before a further request
// waits, so that a server that does not read does not cost a buffer for every
// request.
const maxQueued = 2 << 20

func (c *Conn) waitDrained(ctx context.Context, keep bool) error {
	for {
		c.mu.Lock()
		if len(c.out) < maxQueued || keep {
			c.mu.Unlock()
			return nil // send sees a connection that has ended
		}
		if c.drained == nil {
			c.drained = make(chan struct{})
		}
		drained := c.drained
		c.mu.Unlock()
		select {
		case <-drained:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.dead:
			return c.failure()
		}
	}
}

// send gives a request that has entered a tag and puts its frame behind the
// bytes to be sent.
func (c *Conn) send(k *call, m wire.Msg) (wire.Tag, error) {
	tag, err := c.queue(k, m)
	if err != nil {
		c.leave()
		return 0, err
	}
	c.wakeWriter()
	return tag, nil
}

func (c *Conn) queue(k *call, m wire.Msg) (wire.Tag, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	tag, ok := c.takeTag()
	if !ok {
		return 0, fmt.Errorf("9p %s: out of tags: %w", m.MsgType().String()[1:], syscall.EAGAIN)
	}
	start := len(c.out)
	c.out = m.Append(c.out, tag)
	if n := len(c.out) - start; n > int(c.msize) {
		c.out = c.out[:start]
		c.idle = append(c.idle, tag)
		return 0, fmt.Errorf("9p %s: %d bytes: %w", m.MsgType().String()[1:], n, ErrTooLong)
	}
	c.slots[tag] = slot{call: k, want: m.MsgType() | 1, fid: k.fid}
	c.waiting++
	return tag, nil
}

// giveUp ends a call whose context has ended. It says whether the call has a
// result; if not, the call is abandoned.
func (c *Conn) giveUp(tag wire.Tag, k *call, keep bool) bool {
	if !keep {
		c.mu.Lock()
		if s := &c.slots[tag]; s.call == k && !s.flushing && c.err == nil {
			s.flushing = true
			flush := wire.Tflush{OldTag: tag}
			c.out = flush.Append(c.out, tag|flushBit)
		}
		c.mu.Unlock()
		c.wakeWriter()
	}
	grace := time.NewTimer(c.opts.Grace)
	defer grace.Stop()
	select {
	case <-k.done:
		return true
	case <-grace.C:
	}
	if k.state.CompareAndSwap(callWaiting, callAbandoned) {
		return false
	}
	<-k.done // the reader is copying the answer
	return true
}

// answered handles any frame from the server. An error ends the connection.
func (c *Conn) answered(h wire.Header, body []byte) error {
	switch {
	case h.Type.IsRequest():
		return protocolError("%v is not an answer", h.Type)
	case h.Tag == probeTag:
		return c.probed(h)
	case h.Tag != wire.NoTag && h.Tag&flushBit != 0:
		return c.flushAnswered(h)
	}
	c.mu.Lock()
	if int(h.Tag) >= len(c.slots) {
		c.mu.Unlock()
		return protocolError("%v has tag %d, which was not sent", h.Type, h.Tag)
	}
	s := &c.slots[h.Tag]
	k, want, fid := s.call, s.want, s.fid
	if k == nil {
		late := s.flushed
		s.flushed = false
		c.mu.Unlock()
		if !late {
			return protocolError("%v has tag %d, which waits for no answer", h.Type, h.Tag)
		}
		c.undo(h.Type, fid)
		return nil
	}
	s.call = nil
	c.waiting--
	free := !s.flushing
	if free {
		c.idle = append(c.idle, h.Tag)
	}
	c.mu.Unlock()
	if free {
		c.leave()
	}
	return c.deliver(k, want, h.Type, body)
}

// flushAnswered handles an Rflush: the request is over, answered or not.
func (c *Conn) flushAnswered(h wire.Header) error {
	tag := h.Tag &^ flushBit
	c.mu.Lock()
	if int(tag) >= len(c.slots) || !c.slots[tag].flushing {
		c.mu.Unlock()
		return protocolError("%v has tag %d, which was not sent", h.Type, h.Tag)
	}
	if h.Type != wire.TypeRflush {
		c.mu.Unlock()
		return protocolError("%v answers Tflush", h.Type)
	}
	s := &c.slots[tag]
	k := s.call
	*s = slot{fid: s.fid, flushed: k != nil}
	if k != nil {
		c.waiting--
		time.AfterFunc(quarantine, func() { c.release(tag) })
	} else {
		c.idle = append(c.idle, tag)
	}
	c.mu.Unlock()
	c.leave()
	if k != nil && k.state.CompareAndSwap(callWaiting, callDelivering) {
		k.err = errFlushed
		k.done <- struct{}{}
	}
	return nil
}

// release ends a tag's quarantine.
func (c *Conn) release(tag wire.Tag) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slots[tag].flushed = false
	c.idle = append(c.idle, tag)
}

// deliver gives an answer to its call. An error is the server's violation of
// the protocol; the caller gets it when the connection has failed, which is
// before it can find out otherwise.
func (c *Conn) deliver(k *call, want, got wire.Type, body []byte) error {
	if !k.state.CompareAndSwap(callWaiting, callDelivering) {
		c.undo(got, k.fid)
		return nil
	}
	err := c.decodeAnswer(k, want, got, body)
	if err != nil {
		k.err = c.fail(err)
	}
	k.done <- struct{}{}
	return err
}

// decodeAnswer fills the call's answer, or its err with the server's refusal.
func (c *Conn) decodeAnswer(k *call, want, got wire.Type, body []byte) error {
	if got == wire.TypeRerror && c.old() {
		var m wire.Rerror
		if err := m.Decode(body); err != nil {
			return protocolError("%v: %v", got, err)
		}
		errno, text := oldReason(&m)
		k.err, k.text = errno, text
		return nil
	}
	if got == wire.TypeRlerror {
		var m wire.Rlerror
		if err := m.Decode(body); err != nil {
			return protocolError("%v: %v", got, err)
		}
		k.err = errnoOf(m.Errno)
		return nil
	}
	if got != want {
		return protocolError("%v answers a %v", got, want&^1)
	}
	if err := k.resp.Decode(body); err != nil {
		return protocolError("%v: %v", got, err)
	}
	var data *[]byte
	switch m := k.resp.(type) {
	case *wire.Rread:
		data = &m.Data
	case *wire.Rreaddir:
		data = &m.Data
	default:
		return nil
	}
	if len(*data) > len(k.dst) {
		return protocolError("%v holds %d bytes, %d were asked for", got, len(*data), len(k.dst))
	}
	*data = k.dst[:copy(k.dst, *data)]
	return nil
}

// undo gives back the fid that an answer nobody waits for has made. It runs on
// the reader and does not wait: where too many
// requests are in flight the fid stays with the server until the connection ends.
func (c *Conn) undo(got wire.Type, fid wire.FID) {
	if fid == wire.NoFID || got == wire.TypeRlerror || got == wire.TypeRerror {
		return
	}
	select {
	case c.inFlight <- struct{}{}:
		k := &call{resp: &wire.Rclunk{}, fid: wire.NoFID, done: make(chan struct{}, 1)}
		c.send(k, &wire.Tclunk{FID: fid}) // an error is the connection's end
	default:
	}
}
