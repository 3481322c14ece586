package p9srv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// A call is one message on its way to its answer.
type call struct {
	s    *session
	typ  wire.Type
	tag  wire.Tag
	body []byte
	out  []byte      // the answer is appended
	pipe *pipe       // of a request: goes before out
	from int         // where in out the answer starts
	ctx  *reqContext // nil: run in place
	a, b *slot       // the fids of the message, in its order
	// aloneA and aloneB: the call holds them for itself.
	aloneA, aloneB bool
}

// scratch is memory for what runs in place.
type scratch struct {
	names [wire.MaxWalk]string
	qids  [wire.MaxWalk]p9.QID
}

// plan says which fids a message names and how it holds them.
type plan struct {
	fids           int // 0 to 2
	a, b           wire.FID
	aloneA, aloneB bool
	makeA, makeB   bool // the fid is new
}

var errPlan = fmt.Errorf("%w: too short for its fids", wire.ErrMessage)

// planOf reads the fids of a message. ok is false for a type that is not a
// request of the dialect.
func planOf(t wire.Type, body []byte) (p plan, ok bool, err error) {
	at := func(i int) wire.FID {
		if i < 0 || len(body) < i+4 {
			err = errPlan
			return 0
		}
		return wire.FID(binary.LittleEndian.Uint32(body[i:]))
	}
	switch t {
	case wire.TypeTauth:
		return plan{}, true, nil
	case wire.TypeTattach:
		p = plan{fids: 1, a: at(0), aloneA: true, makeA: true}
	case wire.TypeTwalk:
		p = plan{fids: 2, a: at(0), b: at(4), aloneB: true}
		p.makeB = p.a != p.b
	case wire.TypeTxattrwalk:
		p = plan{fids: 2, a: at(0), b: at(4), aloneB: true, makeB: true}
	case wire.TypeTcreate:
		p = plan{fids: 1, a: at(0), aloneA: true}
		if b, ok := linkFID(body); ok {
			p.fids, p.b = 2, b
		}
	case wire.TypeTopen, wire.TypeTwstat, wire.TypeTlopen, wire.TypeTlcreate, wire.TypeTxattrcreate, wire.TypeTclunk, wire.TypeTremove:
		p = plan{fids: 1, a: at(0), aloneA: true}
	case wire.TypeTlink, wire.TypeTrename:
		p = plan{fids: 2, a: at(0), b: at(4)}
	case wire.TypeTrenameat:
		p = plan{fids: 2, a: at(0)}
		if len(body) >= 6 {
			p.b = at(6 + int(binary.LittleEndian.Uint16(body[4:])))
		} else {
			err = errPlan
		}
	case wire.TypeTreaddir:
		// An open folder has a place it reads on from.
		p = plan{fids: 1, a: at(0), aloneA: true}
	case wire.TypeTstatfs, wire.TypeTsymlink, wire.TypeTmknod, wire.TypeTreadlink, wire.TypeTgetattr,
		wire.TypeTsetattr, wire.TypeTfsync, wire.TypeTlock, wire.TypeTgetlock, wire.TypeTmkdir,
		wire.TypeTunlinkat, wire.TypeTread, wire.TypeTwrite, wire.TypeTstat:
		p = plan{fids: 1, a: at(0)}
	default:
		return plan{}, false, nil
	}
	return p, true, err
}

// dispatch answers a frame in place or makes a request of it. An error ends the
// connection.
func (s *session) dispatch(frame []byte) error {
	h, err := wire.ParseHeader(frame)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	body := frame[wire.HeaderSize:]
	switch {
	case h.Type == wire.TypeTversion:
		return s.version(h.Tag, body)
	case s.msize == 0:
		return fmt.Errorf("%w: %v before Tversion", ErrProtocol, h.Type)
	case h.Type == wire.TypeTflush:
		var m wire.Tflush
		if err := m.Decode(body); err != nil {
			s.refuse(h.Tag, err)
			return nil
		}
		return s.flush(h.Tag, m.OldTag)
	}
	p, ok, err := planOf(h.Type, body)
	if !ok || !s.dialect.speaks(h.Type) {
		err = syscall.EOPNOTSUPP
	}
	if err != nil {
		s.refuse(h.Tag, err)
		return nil
	}
	if h.Type == wire.TypeTread && s.dialect != dialectL {
		// It may be a folder's, which has a place it reads on from.
		p.aloneA = true
	}
	c := &s.call
	*c = call{s: s, typ: h.Type, tag: h.Tag, body: body, aloneA: p.aloneA, aloneB: p.aloneB}
	s.mu.Lock()
	if len(s.tags) > 0 && s.tags[h.Tag] != nil {
		s.mu.Unlock()
		return errTag(h.Tag)
	}
	if err := s.find(c, p); err != nil {
		s.mu.Unlock()
		s.refuse(h.Tag, err)
		return nil
	}
	now := (c.a == nil || c.a.free(c.aloneA)) && (c.b == nil || c.b.free(c.aloneB)) && c.inPlace()
	if !now {
		s.handOver(frame)
		s.mu.Unlock()
		return nil
	}
	s.mu.Unlock()
	s.runInPlace(frame)
	return nil
}

// find gets the slots of a plan. s.mu is held.
func (s *session) find(c *call, p plan) error {
	if p.fids > 0 && !p.makeA {
		if c.a = s.fids[p.a]; c.a == nil {
			return syscall.EBADF
		}
	}
	if p.fids > 1 && !p.makeB {
		if c.b = s.fids[p.b]; c.b == nil {
			return syscall.EBADF
		}
	}
	var err error
	if p.makeA {
		c.a, err = s.newSlot(p.a)
	}
	if p.makeB {
		c.b, err = s.newSlot(p.b)
	}
	return err
}

func (s *session) newSlot(n wire.FID) (*slot, error) {
	if n == wire.NoFID {
		return nil, syscall.EBADF
	}
	if sl := s.fids[n]; sl != nil {
		return sl, nil
	}
	if len(s.fids) >= s.srv.opts.MaxFIDs {
		return nil, syscall.EMFILE
	}
	sl := &slot{num: n}
	s.fids[n] = sl
	return sl, nil
}

// refuse answers with an error in place.
func (s *session) refuse(tag wire.Tag, err error) {
	no, _ := errno(err)
	s.srv.count.errors.Add(1)
	s.out = s.dialect.appendError(s.out, tag, no)
}

// runInPlace answers s.call on this goroutine, or hands it over after all.
func (s *session) runInPlace(frame []byte) {
	c := &s.call
	if s.out == nil {
		s.out = s.srv.bufs.get(outSize)
	}
	c.out, c.from = s.out, len(s.out)
	err := c.invoke()
	if errors.Is(err, ErrWouldBlock) {
		s.out = c.out[:c.from]
		s.mu.Lock()
		s.handOver(frame)
		s.mu.Unlock()
		return
	}
	s.inPlace++
	c.finishAnswer(err)
	s.out = c.out
	if c.aloneA || c.aloneB {
		s.mu.Lock()
		if c.a != nil {
			s.sweep(c.a)
		}
		if c.b != nil {
			s.sweep(c.b)
		}
		s.mu.Unlock()
	}
}

// handOver makes s.call a request. s.mu is held.
func (s *session) handOver(frame []byte) {
	c := &s.call
	if s.pending >= s.srv.opts.MaxRequests || s.crowded && c.typ != wire.TypeTclunk {
		for _, sl := range []*slot{c.a, c.b} {
			if sl != nil {
				s.sweep(sl)
			}
		}
		s.refuse(c.tag, syscall.EAGAIN)
		return
	}
	r := &request{call: *c}
	r.parent = s.ctx
	buf, own := s.steal(frame)
	r.buf, r.body, r.out, r.from = buf, own[wire.HeaderSize:], nil, 0
	r.cost = cap(buf)
	if r.typ == wire.TypeTread || r.typ == wire.TypeTreaddir {
		if len(r.body) >= 16 {
			r.cost += int(min(binary.LittleEndian.Uint32(r.body[12:]), s.msize))
		}
	}
	s.q.hold(r.cost)
	s.spent += r.cost
	s.start(r)
}

// finishAnswer makes c.out end in a proper answer: the handler's, or the error.
func (c *call) finishAnswer(err error) {
	if err == nil && len(c.out)-c.from > int(c.s.msize) {
		err = syscall.EMSGSIZE
	}
	if err == nil {
		return
	}
	no, known := errno(err)
	if !known {
		c.s.log("9p request", err, "op", c.typ.String())
	}
	c.s.srv.count.errors.Add(1)
	c.out = c.s.dialect.appendError(c.out[:c.from], c.tag, no)
}

// invoke runs the handler. Panics come back as errors.
func (c *call) invoke() error {
	return c.s.guard(c.handle)
}

// reserve makes room for an answer of n bytes. Answers before it are sent on
// their way rather than copied.
func (c *call) reserve(n int) {
	if cap(c.out)-len(c.out) >= n {
		return
	}
	s := c.s
	if c.ctx != nil {
		s.srv.bufs.put(c.out)
		c.out, c.from = s.srv.bufs.get(n), 0
		return
	}
	if c.from > 0 {
		s.queue(c.out[:c.from])
	} else {
		s.srv.bufs.put(c.out)
	}
	c.out, c.from = s.srv.bufs.get(max(n, outSize)), 0
}

// bind is the File to operate on: bound to the request where it may wait.
func (c *call) bind(f p9.File) p9.File {
	if c.ctx == nil {
		return f
	}
	if b, ok := f.(Binder); ok {
		return b.Bind(c.ctx)
	}
	return f
}

// inPlace says whether the call may run on the connection's goroutine. Its
// slots are free.
func (c *call) inPlace() bool {
	var op InPlaceOp
	a := c.a
	switch {
	case c.typ == wire.TypeTauth:
		return true
	case a == nil || c.typ == wire.TypeTattach:
		return false
	case !a.live:
		// An error, at once.
		return true
	case a.xattr != nil:
		return c.typ == wire.TypeTread || c.typ == wire.TypeTwrite
	}
	switch c.typ {
	case wire.TypeTwalk, wire.TypeTgetattr, wire.TypeTreadlink, wire.TypeTstatfs, wire.TypeTstat:
		op = OpMeta
	case wire.TypeTclunk:
		op = OpMeta
		if a.opened {
			op = OpClose
		}
		if a.old.rclose {
			return false
		}
	case wire.TypeTlopen, wire.TypeTlcreate, wire.TypeTopen:
		op = OpOpen
	case wire.TypeTread, wire.TypeTreaddir:
		op = OpRead
	case wire.TypeTwrite:
		op = OpWrite
	case wire.TypeTxattrcreate:
		return true
	case wire.TypeTfsync, wire.TypeTlock, wire.TypeTgetlock, wire.TypeTcreate, wire.TypeTwstat:
		return false
	default:
		op = OpName
	}
	p, ok := a.file.(InPlacer)
	return ok && p.InPlace(op)
}
