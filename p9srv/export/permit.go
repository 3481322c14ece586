package export

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"io"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/tree"
)

// doorPermit is the door of the locks that clients hold by permit.
const doorPermit = ^tree.Door(0)

// Bounds of one client.
const (
	maxWaits  = 1 << 12 // of what it waits for at a time
	maxOwners = 1 << 16 // of owners of locks and the files they have locked
)

// permitHandle is permit, open: lines in, lines out. What has to be waited for
// is in goroutines of the handle's own. Its locks go with it, at once; its leases
// when their time is over.
type permitHandle struct {
	j      *Journal
	id     Identity
	client *client
	s      *stream
	h      *holder
	out    outbox
	seed   maphash.Seed

	in    chan struct{} // holds a token while a write is going on
	began bool
	next  int64  // offset of the first byte that has not come yet
	rest  []byte // of a line that has no end yet
	bye   bool

	ctx    context.Context // ends with the handle or the journal
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when watch has ended
	wg     sync.WaitGroup

	mu    sync.Mutex
	waits map[uint64]context.CancelFunc // by tag
	locks map[lockedBy]struct{}         // who may have locks
}

type lockedBy struct {
	oid   kml.OID
	owner tree.LockOwner
}

func (j *Journal) openPermit(ctx context.Context, c *tree.Cred, flags int) (tree.ExtHandle, error) {
	id, err := j.may(ctx, c, RightWrite, "permit")
	if err != nil {
		return nil, err
	}
	if flags&unix.O_ACCMODE != unix.O_RDWR {
		return nil, syscall.EINVAL
	}
	p := &permitHandle{j: j, id: id, client: j.clients.open(id, modeWrite, j.o.Now()), seed: maphash.MakeSeed(),
		in: make(chan struct{}, 1), done: make(chan struct{}), out: outbox{more: make(chan struct{}, 1), room: make(chan struct{}, 1)},
		waits: make(map[uint64]context.CancelFunc), locks: make(map[lockedBy]struct{})}
	p.ctx, p.cancel = context.WithCancelCause(j.ctx)
	p.h = j.leases.join(p.say, func() { p.cancel(errReplaced) })
	p.s = newStream(p.more)
	if !j.run(p.watch) {
		close(p.done)
		return nil, errors.Join(syscall.ESHUTDOWN, p.Close())
	}
	return p, nil
}

var errSilent = errors.New("nothing was heard of the client for as long as its leases last")

// watch ends the handle of a client that holds something and is silent.
func (p *permitHandle) watch() {
	defer close(p.done)
	tick := time.NewTicker(p.j.leases.length / 4)
	defer tick.Stop()
	for {
		select {
		case <-p.ctx.Done():
			p.endStream()
			p.wg.Wait()
			p.unlockAll()
			return
		case <-tick.C:
		}
		p.mu.Lock()
		idle := len(p.locks) == 0 && len(p.waits) == 0
		p.mu.Unlock()
		if !idle && p.j.leases.silent(p.h) {
			p.j.log.Info("locks of a silent client are given up", "peer", p.id.Peer, "uid", p.id.UID)
			p.cancel(errSilent)
		}
	}
}

func (p *permitHandle) endStream() {
	p.out.mu.Lock()
	p.out.ended = true
	p.out.mu.Unlock()
	token(p.out.more)
}

// WriteAt takes lines. Bytes at offsets that have come before are skipped: a
// write may be sent again.
func (p *permitHandle) WriteAt(ctx context.Context, b []byte, off int64) (int, error) {
	select {
	case p.in <- struct{}{}:
		defer func() { <-p.in }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if p.ctx.Err() != nil {
		return 0, syscall.EPIPE
	}
	if !p.began {
		p.began, p.next = true, off
	}
	if off > p.next {
		return 0, syscall.ESPIPE
	}
	p.client.seen(p.j.o.Now())
	if !p.j.leases.hear(p.h) {
		p.cancel(errSilent)
		return 0, syscall.EPIPE
	}
	skip := p.next - off
	if skip >= int64(len(b)) {
		return len(b), nil
	}
	text := append(p.rest, b[skip:]...)
	p.next = off + int64(len(b))
	p.rest = nil
	for {
		line, after, whole := bytes.Cut(text, []byte("\n"))
		if !whole && len(line) > feed.MaxLine {
			p.cancel(feed.ErrRequest)
			return 0, syscall.EPROTO
		}
		if !whole {
			p.rest = bytes.Clone(line)
			return len(b), nil
		}
		a, err := feed.ParseAsk(string(line))
		if err != nil {
			p.j.log.Info("permit: a line that says nothing", "peer", p.id.Peer, "uid", p.id.UID, "err", err)
			p.cancel(err)
			return 0, syscall.EPROTO
		}
		p.ask(a)
		text = after
	}
}

// ask does what a line asks for. It does not wait.
func (p *permitHandle) ask(a feed.Ask) {
	l := p.j.leases
	switch a.Verb {
	case feed.AskAt:
		p.answer(a.Tag, nil)
	case feed.AskSite:
		p.answer(a.Tag, p.isSite(a.Site, a.Key))
	case feed.AskBye:
		p.mu.Lock()
		p.bye = true
		p.mu.Unlock()
		p.unlockAll()
		p.answer(a.Tag, nil)
	case feed.AskFree:
		l.free(p.h, leaseKey{a.Lease, a.OID})
		p.answer(a.Tag, nil)
	case feed.AskTake:
		p.waitFor(a.Tag, func(ctx context.Context) error { return l.take(ctx, p.h, leaseKey{a.Lease, a.OID}) })
	case feed.AskCancel:
		p.mu.Lock()
		if stop := p.waits[a.Of]; stop != nil {
			stop()
		}
		p.mu.Unlock()
		p.answer(a.Tag, nil)
	case feed.AskUnlock:
		o := p.owner(a.Owner)
		p.j.t.Unlock(a.OID, o)
		p.mu.Lock()
		delete(p.locks, lockedBy{a.OID, o})
		p.mu.Unlock()
		p.answer(a.Tag, nil)
	case feed.AskTest:
		tl := p.lock(a)
		got, err := p.j.t.TestLock(p.ctx, a.OID, tl)
		switch {
		case err != nil || got.Type == unix.F_UNLCK:
			p.answer(a.Tag, err)
		default:
			held := feed.FileLock{Kind: a.Lock.Kind, Type: feed.LockRead, Start: got.Start, End: got.End, PID: got.PID}
			if got.Type == unix.F_WRLCK {
				held.Type = feed.LockWrite
			}
			p.say(feed.Reply{Tag: a.Tag, Say: feed.SayHeld, Lock: held})
		}
	case feed.AskLock:
		p.askLock(a)
	}
}

// isSite makes the leases those of a site, whose records they then let through, and
// ends an older permit of it.
func (p *permitHandle) isSite(id kml.SiteID, key string) error {
	site, ok := p.j.t.Site(id)
	if !ok || site.UID != p.id.UID || !site.Knows(hashKey(key)) {
		return syscall.EACCES
	}
	p.j.leases.identify(p.h, id)
	return nil
}

// askLock takes, changes or gives up a lock. A lock of what is not there is
// ESTALE.
func (p *permitHandle) askLock(a feed.Ask) {
	tl := p.lock(a)
	if tl.Type == unix.F_UNLCK {
		p.answer(a.Tag, p.j.t.SetLock(p.ctx, a.OID, tl, false))
		return
	}
	if !p.j.t.IsKnown(a.OID) {
		p.answer(a.Tag, syscall.ESTALE)
		return
	}
	p.mu.Lock()
	p.locks[lockedBy{a.OID, tl.Owner}] = struct{}{}
	full := len(p.locks) > maxOwners
	p.mu.Unlock()
	if full {
		p.answer(a.Tag, syscall.ENOLCK)
		return
	}
	p.waitFor(a.Tag, func(ctx context.Context) error { return p.j.t.SetLock(ctx, a.OID, tl, a.Wait) })
}

// waitFor answers when f has ended.
func (p *permitHandle) waitFor(tag uint64, f func(ctx context.Context) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.waits) >= maxWaits || p.waits[tag] != nil {
		p.answer(tag, syscall.ENOLCK)
		return
	}
	ctx, stop := context.WithCancel(p.ctx)
	p.waits[tag] = stop
	p.wg.Go(func() {
		defer stop()
		err := f(ctx)
		p.mu.Lock()
		delete(p.waits, tag)
		p.mu.Unlock()
		p.answer(tag, err)
	})
}

// owner is a lock owner of the client among those of all.
func (p *permitHandle) owner(o uint64) tree.LockOwner {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], o)
	return tree.LockOwner{Door: doorPermit, Owner: maphash.Bytes(p.seed, b[:])}
}

func (p *permitHandle) lock(a feed.Ask) tree.Lock {
	l := tree.Lock{Type: unix.F_UNLCK, Flock: a.Lock.Kind == feed.LockFlock, Start: a.Lock.Start, End: a.Lock.End,
		PID: a.Lock.PID, Owner: p.owner(a.Owner)}
	switch a.Lock.Type {
	case feed.LockRead:
		l.Type = unix.F_RDLCK
	case feed.LockWrite:
		l.Type = unix.F_WRLCK
	}
	return l
}

// answer says what became of what was asked. What is granted covers the log up
// to its end of now.
func (p *permitHandle) answer(tag uint64, err error) {
	if err == nil {
		p.say(feed.Reply{Tag: tag, Say: feed.SayOK, Pos: p.j.t.Log().End(), For: p.j.leases.length})
		return
	}
	errno := syscall.EIO
	errors.As(err, &errno)
	p.say(feed.Reply{Tag: tag, Say: feed.SayNo, Errno: errno})
}

// say puts a line where reads find it. A client that does not read is cut off.
func (p *permitHandle) say(r feed.Reply) {
	o := &p.out
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.b) > outboxMax {
		p.cancel(errUnread)
		return
	}
	o.b = append(o.b, r.String()...)
	token(o.more)
}

var errUnread = errors.New("the client does not read")

// ReadAt answers with what there is, and waits while there is nothing.
func (p *permitHandle) ReadAt(ctx context.Context, b []byte, off int64) (int, error) {
	return p.s.readAt(ctx, b, off)
}

func (p *permitHandle) more(ctx context.Context, b []byte, _ int) ([]byte, error) {
	for {
		o := &p.out
		o.mu.Lock()
		b, o.b = append(b, o.b...), nil
		ended := o.ended
		o.mu.Unlock()
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

// Attr says nothing: a stream has no size.
func (p *permitHandle) Attr() (tree.Attr, bool) { return tree.Attr{}, false }

// unlockAll gives up all locks.
func (p *permitHandle) unlockAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.locks {
		p.j.t.Unlock(l.oid, l.owner)
	}
	clear(p.locks)
}

// Close gives up the locks, and the leases when the client has said bye.
func (p *permitHandle) Close() error {
	p.cancel(nil)
	<-p.done
	p.wg.Wait()
	p.unlockAll()
	p.mu.Lock()
	bye := p.bye
	p.mu.Unlock()
	p.j.leases.leave(p.h, bye)
	p.j.clients.close(p.client, modeWrite, p.j.o.Now())
	return nil
}
