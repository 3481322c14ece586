package bench9p

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"syscall"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/p9srv/wire"
)

// conn is the generator's end of a connection: a blocking descriptor, what was
// read and what is to be written. One goroutine uses it.
type conn struct {
	num   int
	file  *os.File
	fd    int
	msize int
	in    []byte
	r, w  int
	skip  int // bytes of a large answer that nobody looks at
	out   []byte
	slots []slot
	rand  *rand.Rand
	files uint64 // made and not removed; their names are numbers
	// oldNames: the server knows neither Tunlinkat nor Trenameat, and gets what
	// the kernel sends then.
	oldNames bool
	seq      uint64 // where sequential reads and writes go on
}

// slot is one of the rounds in flight. Its number is its tag.
type slot struct {
	c    *conn
	num  int
	step int // messages of the round sent
	fid  wire.FID
	want wire.Type

	off     uint64 // for rows that go on where they stopped
	made    bool   // it has the file that rename moves
	entries int    // of a folder, so far
}

// askMsize is what a kernel client asks for at most over TCP.
const askMsize = 1 << 20

// largeAnswer is from where on the data of an Rread is thrown away unread.
const largeAnswer = 32 << 10

// dial connects and attaches as the running user; fid 0 is the root. room is for
// what is read at a time: an answer has to fit.
func dial(network, addr, aname string, num, depth, room int) (*conn, error) {
	nc, err := net.Dial(network, addr)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	var f *os.File
	switch nc := nc.(type) {
	case *net.UnixConn:
		f, err = nc.File()
	case *net.TCPConn:
		f, err = nc.File()
	default:
		err = syscall.EPROTONOSUPPORT
	}
	if err != nil {
		return nil, err
	}
	c := &conn{
		num: num, file: f, fd: int(f.Fd()), msize: 8 << 10, in: make([]byte, room),
		slots: make([]slot, depth), rand: rand.New(rand.NewPCG(1, uint64(num))),
	}
	if err := unix.SetNonblock(c.fd, false); err != nil {
		return nil, errors.Join(err, c.close())
	}
	for i := range c.slots {
		c.slots[i] = slot{c: c, num: i, fid: wire.FID(1000 + i)}
	}
	var v wire.Rversion
	if err := c.call(&wire.Tversion{Msize: askMsize, Version: wire.Version9P2000L}, &v); err != nil {
		return nil, errors.Join(err, c.close())
	}
	c.msize = int(v.Msize)
	a := &wire.Tattach{FID: 0, AFID: wire.NoFID, Uname: "root", Aname: aname, UID: p9.UID(os.Getuid())}
	if err := c.call(a, nil); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

func (c *conn) close() error { return c.file.Close() }

// ioHeader is what a kernel client leaves of a message for what is not data
// (P9_IOHDRSZ).
const ioHeader = 24

// payload is the most data a message may carry.
func (c *conn) payload() int { return c.msize - ioHeader }

// call sends one message and waits for its answer, which it decodes if into is
// not nil.
func (c *conn) call(m wire.Msg, into wire.Msg) error {
	c.out = m.Append(c.out, 0)
	t, _, body, err := c.next()
	if err != nil {
		return err
	}
	if err := check(t, m.MsgType()+1, body); err != nil || into == nil {
		return err
	}
	return into.Decode(body)
}

func check(t, want wire.Type, body []byte) error {
	if t == want {
		return nil
	}
	if t == wire.TypeRlerror && len(body) >= 4 {
		return fmt.Errorf("%v: %w", want-1, syscall.Errno(binary.LittleEndian.Uint32(body)))
	}
	return fmt.Errorf("%v answered with %v", want-1, t)
}

// next returns an answer; what is to be written goes out before it waits. The
// body of a large read is cut short.
func (c *conn) next() (t wire.Type, tag wire.Tag, body []byte, err error) {
	for {
		have := c.in[c.r:c.w]
		if c.skip > 0 {
			n := min(c.skip, len(have))
			c.skip -= n
			c.r += n
			have = have[n:]
		}
		if len(have) >= wire.ReadOverhead || len(have) >= wire.HeaderSize && int(have[0]) == wire.HeaderSize {
			size := int(binary.LittleEndian.Uint32(have))
			t, tag = wire.Type(have[4]), wire.Tag(binary.LittleEndian.Uint16(have[5:]))
			if t == wire.TypeRread && size > largeAnswer {
				c.r += wire.ReadOverhead
				c.skip = size - wire.ReadOverhead
				return t, tag, have[wire.HeaderSize:wire.ReadOverhead], nil
			}
			if len(have) >= size {
				c.r += size
				return t, tag, have[wire.HeaderSize:size], nil
			}
		} else if len(have) >= wire.HeaderSize {
			if size := int(binary.LittleEndian.Uint32(have)); len(have) >= size {
				c.r += size
				return wire.Type(have[4]), wire.Tag(binary.LittleEndian.Uint16(have[5:])), have[wire.HeaderSize:size], nil
			}
		}
		if err := c.flush(nil); err != nil {
			return 0, 0, nil, err
		}
		c.w = copy(c.in, c.in[c.r:c.w])
		c.r = 0
		n, err := unix.Read(c.fd, c.in[c.w:])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, 0, nil, err
		case n == 0:
			return 0, 0, nil, errors.New("server closed the connection")
		default:
			c.w += n
		}
	}
}

// flush writes what is to be written, and p behind it.
func (c *conn) flush(p []byte) error {
	b := c.out
	c.out = c.out[:0]
	for len(b) > 0 || len(p) > 0 {
		var n int
		var err error
		if len(p) == 0 {
			n, err = unix.Write(c.fd, b)
		} else {
			n, err = unix.Writev(c.fd, [][]byte{b, p})
		}
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		k := min(n, len(b))
		b, p = b[k:], p[n-k:]
	}
	return nil
}

// send begins the next message of a round.
func (s *slot) send(m wire.Msg) {
	s.c.out = m.Append(s.c.out, wire.Tag(s.num))
	s.want = m.MsgType() + 1
	s.step++
}

// write sends a Twrite; large data is not copied.
func (s *slot) write(fid wire.FID, off uint64, data []byte) error {
	c := s.c
	c.out = wire.AppendWriteHeader(c.out, wire.Tag(s.num), fid, off, len(data))
	s.want = wire.TypeRwrite
	s.step++
	if len(data) > largeAnswer {
		return c.flush(data)
	}
	c.out = append(c.out, data...)
	return nil
}

// run does n rounds of a row, as many at a time as there are slots.
func (c *conn) run(n int, round func(s *slot, answer []byte) (more bool, err error)) error {
	begun, running := 0, 0
	begin := func(s *slot) error {
		begun++
		running++
		s.step = 0
		_, err := round(s, nil)
		return err
	}
	for i := range min(len(c.slots), n) {
		if err := begin(&c.slots[i]); err != nil {
			return err
		}
	}
	for running > 0 {
		t, tag, body, err := c.next()
		if err != nil {
			return err
		}
		s := &c.slots[tag]
		if err := check(t, s.want, body); err != nil {
			return err
		}
		more, err := round(s, body)
		if err != nil {
			return err
		}
		if more {
			continue
		}
		running--
		if begun < n {
			if err := begin(s); err != nil {
				return err
			}
		}
	}
	return nil
}
