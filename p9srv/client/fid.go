package client

import (
	"context"
	"fmt"
	"sync/atomic"
	"syscall"

	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/p9srv/wire"
)

// fidPool hands out fid numbers. A number whose fate at the server is unknown
// is not put back.
type fidPool struct {
	next wire.FID
	free []wire.FID
}

func (p *fidPool) get() (wire.FID, error) {
	if n := len(p.free); n > 0 {
		f := p.free[n-1]
		p.free = p.free[:n-1]
		return f, nil
	}
	if p.next == wire.NoFID {
		return wire.NoFID, fmt.Errorf("9p: out of fids: %w", syscall.EMFILE)
	}
	p.next++
	return p.next - 1, nil
}

func (c *Conn) newFID() (wire.FID, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fids.get()
}

func (c *Conn) freeFID(f wire.FID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fids.free = append(c.fids.free, f)
}

// Fid is a handle on a file of the server. Give it back with Clunk or Remove.
type Fid struct {
	c      *Conn
	fid    wire.FID
	state  atomic.Pointer[fidState]
	closed atomic.Bool
}

// fidState is what the server has told of a fid; open and create change it.
type fidState struct {
	qid    p9.QID
	iounit uint32
}

func (c *Conn) fidOf(fid wire.FID, qid p9.QID) *Fid {
	f := &Fid{c: c, fid: fid}
	f.state.Store(&fidState{qid: qid})
	return f
}

// Conn is the connection the fid belongs to.
func (f *Fid) Conn() *Conn { return f.c }

// QID is the file's QID as of the last walk, open or create.
func (f *Fid) QID() p9.QID { return f.state.Load().qid }

// IOSize is the most bytes one read or write of the open file carries.
func (f *Fid) IOSize() int {
	size := f.c.msize - wire.IOOverhead
	if u := f.state.Load().iounit; u != 0 {
		size = min(size, u)
	}
	return int(size)
}

// do sends a request on the fid that makes no new one.
func (f *Fid) do(ctx context.Context, m, answer wire.Msg, name string) error {
	if f.closed.Load() {
		return f.unusable(m)
	}
	return f.c.roundTrip(ctx, request{msg: m, resp: answer, fid: wire.NoFID, name: name})
}

func (f *Fid) unusable(m wire.Msg) error {
	return fmt.Errorf("9p %s: %w", m.MsgType().String()[1:], ErrClunked)
}

// making sends a request that makes the fid newfid when it succeeds. The
// number goes back where the server is known not to use it.
func (c *Conn) making(ctx context.Context, newfid wire.FID, m, answer wire.Msg, name string) error {
	err := c.roundTrip(ctx, request{msg: m, resp: answer, fid: newfid, name: name})
	if _, refused := err.(*Error); refused {
		c.freeFID(newfid)
	}
	return err
}

// checkStrings refuses what does not fit a string on the wire; the codec would
// cut it.
func checkStrings(ss ...string) error {
	for _, s := range ss {
		if wire.CheckString(s) != nil {
			return ErrTooLong
		}
	}
	return nil
}

// Attach makes a fid for the root of the tree aname, as the user uid (p9.NoUID
// leaves it to uname).
func (c *Conn) Attach(ctx context.Context, uname string, uid p9.UID, aname string) (*Fid, error) {
	if err := checkStrings(uname, aname); err != nil {
		return nil, err
	}
	fid, err := c.newFID()
	if err != nil {
		return nil, err
	}
	var answer wire.Rattach
	req := wire.Tattach{FID: fid, AFID: wire.NoFID, Uname: uname, Aname: aname, UID: uid, Plain: c.plain()}
	if err := c.making(ctx, fid, &req, &answer, aname); err != nil {
		return nil, err
	}
	return c.fidOf(fid, answer.QID), nil
}

// Clone makes another fid for the same file, not open.
func (f *Fid) Clone(ctx context.Context) (*Fid, error) {
	g, _, err := f.Walk(ctx)
	return g, err
}

// Walk makes a fid for the file that the names lead to from f, which must not
// be open. Names are taken as they are: no slashes, but ".." is the parent. It
// returns the QIDs of the files passed; when it fails with ENOENT on the way,
// those up to there. More than 16 names take several requests.
func (f *Fid) Walk(ctx context.Context, names ...string) (*Fid, []p9.QID, error) {
	if err := checkStrings(names...); err != nil {
		return nil, nil, err
	}
	if f.closed.Load() {
		return nil, nil, f.unusable(&wire.Twalk{})
	}
	fid, err := f.c.newFID()
	if err != nil {
		return nil, nil, err
	}
	first := names[:min(len(names), wire.MaxWalk)]
	var answer wire.Rwalk
	if err := f.c.making(ctx, fid, &wire.Twalk{FID: f.fid, NewFID: fid, Names: first}, &answer, nameOf(first)); err != nil {
		return nil, nil, err
	}
	qids, err := f.c.walked(first, answer.QIDs)
	if err != nil {
		if len(qids) < len(first) {
			f.c.freeFID(fid)
		}
		return nil, qids, err
	}
	g := f.c.fidOf(fid, f.QID())
	for rest := names[len(first):]; len(rest) > 0; {
		step := rest[:min(len(rest), wire.MaxWalk)]
		rest = rest[len(step):]
		var answer wire.Rwalk
		err := g.do(ctx, &wire.Twalk{FID: fid, NewFID: fid, Names: step}, &answer, nameOf(step))
		if err == nil {
			var more []p9.QID
			more, err = f.c.walked(step, answer.QIDs)
			qids = append(qids, more...)
		}
		if err != nil {
			g.Clunk(ctx) // the walk's error says more
			return nil, qids, err
		}
	}
	if n := len(qids); n > 0 {
		g.state.Store(&fidState{qid: qids[n-1]})
	}
	return g, qids, nil
}

func nameOf(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return names[0]
}

// walked judges a server's walk: too many QIDs break the protocol, too few are
// a name that is not there.
func (c *Conn) walked(names []string, qids []p9.QID) ([]p9.QID, error) {
	if len(qids) > len(names) {
		return nil, c.violated("Rwalk has %d QIDs for %d names", len(qids), len(names))
	}
	if len(qids) < len(names) {
		return qids, &Error{Op: "walk", Name: names[len(qids)], Errno: syscall.ENOENT}
	}
	return qids, nil
}

// Clunk gives the fid back. It is sent even when ctx has ended, which then only
// ends the wait. The error is the server's, such as a write's that came late;
// the fid is gone in any case, and further calls return ErrClunked.
func (f *Fid) Clunk(ctx context.Context) error {
	return f.end(ctx, &wire.Tclunk{FID: f.fid}, &wire.Rclunk{})
}

// Remove unlinks the file and gives the fid back, in this order; the fid is
// gone even when unlinking fails.
func (f *Fid) Remove(ctx context.Context) error {
	return f.end(ctx, &wire.Tremove{FID: f.fid}, &wire.Rremove{})
}

func (f *Fid) end(ctx context.Context, m, answer wire.Msg) error {
	if f.closed.Swap(true) {
		return f.unusable(m)
	}
	err := f.c.roundTrip(ctx, request{msg: m, resp: answer, fid: wire.NoFID, keep: true})
	if _, refused := err.(*Error); refused || err == nil {
		f.c.freeFID(f.fid)
	}
	return err
}
