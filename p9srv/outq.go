package p9srv

import (
	"errors"
	"io"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// outq is what waits to be written to a connection. Whoever adds answers
// writes, unless somebody else is at it already; then that one writes these,
// too. A descriptor that takes no more is left to a goroutine of its own, so
// that nobody else waits for a client that does not read.
type outq struct {
	conn  io.Writer
	raw   syscall.RawConn // nil: not a socket
	srv   *Server
	owner *sync.WaitGroup // of the goroutine
	fail  func(error)

	mu   sync.Mutex
	pend []piece // in order, owned
	size int     // bytes in pend and being written
	held int     // bytes of requests in progress
	busy bool    // somebody writes
	dead bool    // nothing is written any more
	room sync.Cond
}

// piece is a part of what is written: bytes, or what is in a pipe.
type piece struct {
	b    []byte
	pipe *pipe
}

func (p *piece) len() int {
	if p.pipe != nil {
		return p.pipe.n
	}
	return len(p.b)
}

func (q *outq) init(c io.Writer, raw syscall.RawConn, s *Server, owner *sync.WaitGroup, fail func(error)) {
	q.conn, q.raw, q.srv, q.owner, q.fail = c, raw, s, owner, fail
	q.room.L = &q.mu
}

// add queues a buffer; it belongs to q then. It does no I/O.
func (q *outq) add(b []byte) { q.addPieces(piece{b: b}) }

// addPieces queues what belongs together. It does no I/O.
func (q *outq) addPieces(ps ...piece) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.dead {
		q.forget(ps)
		return
	}
	for _, p := range ps {
		q.pend = append(q.pend, p)
		q.size += p.len()
	}
}

// forget gives up what will not be written.
func (q *outq) forget(ps []piece) {
	for _, p := range ps {
		if p.pipe != nil {
			q.srv.pipes.put(p.pipe)
		} else {
			q.srv.bufs.put(p.b)
		}
	}
}

// flush writes what is queued, if nobody else does. With wait it may take as
// long as the client does; without, what the descriptor does not take at once
// is left to another goroutine.
func (q *outq) flush(wait bool) {
	q.mu.Lock()
	if q.busy || q.dead || len(q.pend) == 0 {
		q.mu.Unlock()
		return
	}
	q.busy = true
	b := batch{pieces: q.pend}
	q.pend = nil
	if q.raw != nil {
		q.mu.Unlock()
		if b = q.drain(b, false); len(b.pieces) == 0 {
			return
		}
		q.mu.Lock()
	}
	if wait {
		q.mu.Unlock()
		q.drain(b, true)
		return
	}
	q.owner.Add(1)
	q.mu.Unlock()
	go func() {
		defer q.owner.Done()
		q.drain(b, true)
	}()
}

// batch is pieces being written; off bytes of the first are, when it is no pipe.
type batch struct {
	pieces []piece
	off    int
}

// maxVec is how many buffers one writev takes.
const maxVec = 16

// vec is the bytes to write next, nothing when a pipe is next.
func (b *batch) vec(room *[maxVec][]byte) [][]byte {
	n := 0
	for n < min(len(b.pieces), maxVec) && b.pieces[n].pipe == nil {
		room[n] = b.pieces[n].b
		n++
	}
	if n > 0 {
		room[0] = room[0][b.off:]
	}
	return room[:n]
}

// more is what was queued meanwhile; when that is nothing, nobody writes any
// more.
func (q *outq) more() batch {
	q.mu.Lock()
	defer q.mu.Unlock()
	b := batch{pieces: q.pend}
	q.pend = nil
	if len(b.pieces) == 0 || q.dead {
		q.busy = false
		return batch{}
	}
	return b
}

// drain writes until nothing is left, or with wait false until the descriptor
// takes no more: then it returns what is left.
func (q *outq) drain(b batch, wait bool) batch {
	for {
		for len(b.pieces) > 0 {
			n, err := q.write(&b, wait)
			if errors.Is(err, unix.EAGAIN) {
				return b
			}
			q.srv.count.writes.Add(1)
			q.took(&b, n)
			if err != nil {
				q.die(err)
				q.forget(b.pieces)
				return batch{}
			}
		}
		if b = q.more(); len(b.pieces) == 0 {
			return b
		}
	}
}

// write writes from the front of b. Without wait it fails with EAGAIN where it
// would have to.
func (q *outq) write(b *batch, wait bool) (n int, err error) {
	if q.raw == nil {
		return q.conn.Write(b.pieces[0].b[b.off:])
	}
	var room [maxVec][]byte
	vec := b.vec(&room)
	cerr := q.raw.Write(func(fd uintptr) bool {
		for {
			switch len(vec) {
			case 0:
				n, err = b.pieces[0].pipe.sendTo(int(fd))
			case 1:
				n, err = unix.Write(int(fd), vec[0])
			default:
				n, err = unix.Writev(int(fd), vec)
			}
			if err != unix.EINTR {
				return !wait || err != unix.EAGAIN
			}
		}
	})
	if cerr != nil {
		err = cerr
	}
	return max(n, 0), err
}

// took accounts for n bytes written from the front of b.
func (q *outq) took(b *batch, n int) {
	q.srv.count.bytesOut.Add(uint64(n))
	q.mu.Lock()
	q.size -= n
	q.room.Broadcast()
	q.mu.Unlock()
	if p := b.pieces; len(p) > 0 && p[0].pipe != nil {
		if p[0].pipe.n -= n; p[0].pipe.n == 0 {
			q.srv.pipes.put(p[0].pipe)
			b.pieces = p[1:]
		}
		return
	}
	b.off += n
	for len(b.pieces) > 0 && b.pieces[0].pipe == nil && b.off >= len(b.pieces[0].b) {
		b.off -= len(b.pieces[0].b)
		q.srv.bufs.put(b.pieces[0].b)
		b.pieces = b.pieces[1:]
	}
}

// hold accounts for memory of requests in progress.
func (q *outq) hold(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.held += n
	if n < 0 {
		q.room.Broadcast()
	}
}

// stall is how long requests in progress may keep a connection from being read
// when they hold all its memory. They may be waiting for what only the next
// message brings: a flush, an unlock, the end.
const stall = 200 * time.Millisecond

// waitRoom returns when at most limit bytes wait and are held, or nothing is
// written any more. It returns false when there is no room and waiting for it
// may be in vain, at once if patient is false.
func (q *outq) waitRoom(limit int, patient bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.size+q.held <= limit {
		return true
	}
	late := !patient
	if patient {
		t := time.AfterFunc(stall, func() {
			q.mu.Lock()
			defer q.mu.Unlock()
			late = true
			q.room.Broadcast()
		})
		defer t.Stop()
	}
	for q.size+q.held > limit && !q.dead {
		// Answers that the client does not take are the client's business.
		if late && q.size <= limit/2 {
			return false
		}
		q.room.Wait()
	}
	return true
}

// drop forgets what is queued and not being written: a session restarts.
func (q *outq) drop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range q.pend {
		q.size -= q.pend[i].len()
	}
	q.forget(q.pend)
	q.pend = nil
}

// die ends all writing.
func (q *outq) die(err error) {
	q.stop()
	q.fail(err)
}

func (q *outq) stop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.forget(q.pend)
	q.dead, q.busy = true, false
	q.pend, q.size = nil, 0
	q.room.Broadcast()
}
