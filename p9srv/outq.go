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
	bufs  *buffers
	count *counters
	owner *sync.WaitGroup // of the goroutine
	fail  func(error)

	mu   sync.Mutex
	pend [][]byte // in order, owned
	size int      // bytes in pend and being written
	held int      // bytes of requests in progress
	busy bool     // somebody writes
	dead bool     // nothing is written any more
	room sync.Cond
}

func (q *outq) init(c io.Writer, raw syscall.RawConn, s *Server, owner *sync.WaitGroup, fail func(error)) {
	q.conn, q.raw, q.bufs, q.count, q.owner, q.fail = c, raw, &s.bufs, &s.count, owner, fail
	q.room.L = &q.mu
}

// add queues a buffer; it belongs to q then. It does no I/O.
func (q *outq) add(b []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.dead {
		q.bufs.put(b)
		return
	}
	q.pend = append(q.pend, b)
	q.size += len(b)
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
	b := batch{bufs: q.pend}
	q.pend = nil
	if q.raw != nil {
		q.mu.Unlock()
		for {
			if err := q.tryWrite(&b); err != nil {
				q.die(err)
				return
			}
			if len(b.bufs) > 0 {
				break
			}
			if b = q.more(); len(b.bufs) == 0 {
				return
			}
		}
		q.mu.Lock()
	}
	if wait {
		q.mu.Unlock()
		q.drain(b)
		return
	}
	q.owner.Add(1)
	q.mu.Unlock()
	go func() {
		defer q.owner.Done()
		q.drain(b)
	}()
}

// batch is buffers being written; off bytes of the first are.
type batch struct {
	bufs [][]byte
	off  int
}

// maxVec is how many buffers one writev takes.
const maxVec = 16

// vec is what to write next.
func (b *batch) vec(room *[maxVec][]byte) [][]byte {
	n := copy(room[:], b.bufs)
	room[0] = room[0][b.off:]
	return room[:n]
}

// more is what was queued meanwhile; when that is nothing, nobody writes any
// more.
func (q *outq) more() batch {
	q.mu.Lock()
	defer q.mu.Unlock()
	b := batch{bufs: q.pend}
	q.pend = nil
	if len(b.bufs) == 0 || q.dead {
		q.busy = false
		return batch{}
	}
	return b
}

// tryWrite writes without waiting. b keeps what the descriptor did not take.
func (q *outq) tryWrite(b *batch) error {
	for len(b.bufs) > 0 {
		var n int
		var err error
		var room [maxVec][]byte
		vec := b.vec(&room)
		cerr := q.raw.Write(func(fd uintptr) bool {
			for {
				if len(vec) == 1 {
					n, err = unix.Write(int(fd), vec[0])
				} else {
					n, err = unix.Writev(int(fd), vec)
				}
				if err != unix.EINTR {
					return true
				}
			}
		})
		if err == nil {
			err = cerr
		}
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if err != nil {
			return err
		}
		q.count.writes.Add(1)
		q.took(b, n)
	}
	return nil
}

// took accounts for n bytes written from the front of b.
func (q *outq) took(b *batch, n int) {
	q.count.bytesOut.Add(uint64(n))
	q.mu.Lock()
	q.size -= n
	q.room.Broadcast()
	q.mu.Unlock()
	b.off += n
	for len(b.bufs) > 0 && b.off >= len(b.bufs[0]) {
		b.off -= len(b.bufs[0])
		q.bufs.put(b.bufs[0])
		b.bufs = b.bufs[1:]
	}
}

// drain writes with waiting until nothing is left.
func (q *outq) drain(b batch) {
	for {
		for len(b.bufs) > 0 {
			n, err := q.conn.Write(b.bufs[0][b.off:])
			q.count.writes.Add(1)
			q.took(&b, n)
			if err != nil {
				q.die(err)
				return
			}
		}
		if b = q.more(); len(b.bufs) == 0 {
			return
		}
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
	for _, b := range q.pend {
		q.size -= len(b)
		q.bufs.put(b)
	}
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
	q.dead, q.busy = true, false
	q.pend, q.size = nil, 0
	q.room.Broadcast()
}
