package p9srv

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/p9srv/wire"
)

// pipe holds an answer whose data goes from a file to a connection without being
// copied: the pipe has pages of the file, not bytes.
type pipe struct {
	r, w int
	n    int // bytes in it
}

// pipes are a server's pipes. They cost two descriptors and 10 KiB each.
type pipes struct {
	mu   sync.Mutex
	free []*pipe
	used int // that are not free
	none bool
}

const (
	maxPipes  = 64       // in use at a time; the answers of others are copied
	idlePipes = 8        // kept for the next answer
	pipeSize  = 2 << 20  // a large answer and its header; root may have it
	pipeLess  = 1 << 20  // what others may have (pipe(7): pipe-max-size)
	pipeLeast = 64 << 10 // what is not worth it
	// spliceMin is the smallest answer that goes through a pipe: that costs two
	// system calls more than copying.
	spliceMin = 64 << 10
)

// get returns an empty pipe; nil when there is none.
func (p *pipes) get() *pipe {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.none || p.used >= maxPipes {
		return nil
	}
	if n := len(p.free); n > 0 {
		x := p.free[n-1]
		p.free = p.free[:n-1]
		p.used++
		return x
	}
	var fd [2]int
	if unix.Pipe2(fd[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		return nil
	}
	x := &pipe{r: fd[0], w: fd[1]}
	size, err := unix.FcntlInt(uintptr(x.w), unix.F_SETPIPE_SZ, pipeSize)
	if err != nil {
		size, err = unix.FcntlInt(uintptr(x.w), unix.F_SETPIPE_SZ, pipeLess)
	}
	if err != nil || size <= pipeLeast {
		// A user's share may be used up (pipe(7)): what there is stays.
		p.none = p.used == 0 && len(p.free) == 0
		x.close()
		return nil
	}
	p.used++
	return x
}

// put takes a pipe back. One that is not empty is closed.
func (p *pipes) put(x *pipe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used--
	if x.n != 0 || len(p.free) >= idlePipes {
		x.close()
		return
	}
	p.free = append(p.free, x)
}

// close closes those that are free.
func (p *pipes) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, x := range p.free {
		x.close()
	}
	p.free = nil
}

func (x *pipe) close() {
	unix.Close(x.r)
	unix.Close(x.w)
}

// sendTo moves bytes to a socket without waiting.
func (x *pipe) sendTo(fd int) (int, error) {
	n, err := unix.Splice(x.r, nil, fd, nil, x.n, unix.SPLICE_F_NONBLOCK)
	if err == nil && n == 0 {
		// The pipe has less than was put into it: the stream is lost.
		err = unix.EIO
	}
	return int(max(n, 0)), err
}

// readPipe answers a read of want bytes through a pipe, if it can.
func (c *call) readPipe(sl *slot, want int, off int64) bool {
	s := c.s
	if s.raw == nil || sl.place != nil || s.srv.opts.Trace != nil {
		return false
	}
	f, ok := c.bind(sl.file).(PipeReader)
	if !ok {
		return false
	}
	n := min(f.PipeSize(off, want), want)
	if n < spliceMin {
		return false
	}
	p := s.srv.pipes.get()
	if p == nil {
		return false
	}
	tail, ok := c.fillPipe(p, sl, f, off, n)
	if !ok {
		s.srv.pipes.put(p)
		return false
	}
	if c.ctx != nil {
		s.srv.bufs.put(c.out)
		c.out, c.from, c.pipe = tail, 0, p
		return true
	}
	if c.from > 0 {
		s.queue(c.out[:c.from])
		c.out, c.from = s.srv.bufs.get(outSize), 0
	}
	s.queuePipe(p, tail)
	return true
}

// fillPipe puts an Rread of n bytes into a pipe, and what has no room there into
// tail. When it cannot, something may be left in the pipe.
func (c *call) fillPipe(p *pipe, sl *slot, f PipeReader, off int64, n int) (tail []byte, ok bool) {
	var head [wire.ReadOverhead]byte
	wire.PutReadHeader(head[:], wire.TypeRread, c.tag, n)
	// From here on it is not empty, which put has to know.
	p.n = len(head)
	if k, err := unix.Write(p.w, head[:]); err != nil || k != len(head) {
		return nil, false
	}
	k, err := f.ReadToPipe(p.w, off, n)
	if err != nil || k <= 0 || k > n {
		return nil, false
	}
	p.n += k
	if k == n {
		return nil, true
	}
	tail = c.s.srv.bufs.get(n - k)[:n-k]
	if got, _ := c.readFull(sl, tail, off+int64(k)); got < n-k {
		// The file was cut meanwhile, or the rest is not in memory.
		c.s.srv.bufs.put(tail)
		return nil, false
	}
	return tail, true
}

// pieces is the answer as it is queued.
func (c *call) pieces() []piece {
	var ps []piece
	if c.pipe != nil {
		ps = append(ps, piece{pipe: c.pipe})
	}
	if len(c.out) > 0 {
		ps = append(ps, piece{b: c.out})
	} else if c.out != nil {
		c.s.srv.bufs.put(c.out)
	}
	return ps
}

// queuePipe is queue for an answer in a pipe and what does not fit there.
func (s *session) queuePipe(p *pipe, tail []byte) {
	s.spent += p.n + len(tail)
	s.queued += p.n + len(tail)
	if tail == nil {
		s.q.addPieces(piece{pipe: p})
	} else {
		s.q.addPieces(piece{pipe: p}, piece{b: tail})
	}
	if s.queued >= maxQueued {
		s.queued = 0
		s.q.flush(false)
	}
}
