package cli

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// settlePatience is how long a server has to answer the first message.
const settlePatience = 10 * time.Second

// maxStale bounds what is read past before that answer: what an older user of
// the line did not read any more.
const maxStale = 256 << 20

// settle makes a line that may have been used before a fresh one: it sends a
// Tversion, which ends whatever session there was, and reads past everything
// until its answer. A random msize makes the answer unlike any other bytes.
func settle(line *os.File) error {
	const version = "9P2000.L"
	msize := 4096 + rand.Uint32N(4096)
	message := func(kind byte) []byte {
		b := binary.LittleEndian.AppendUint32(nil, uint32(4+1+2+4+2+len(version)))
		b = append(b, kind, 0xFF, 0xFF)
		b = binary.LittleEndian.AppendUint32(b, msize)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(version)))
		return append(b, version...)
	}
	const tversion, rversion = 100, 101
	if err := line.SetDeadline(time.Now().Add(settlePatience)); err != nil {
		return err
	}
	if _, err := line.Write(message(tversion)); err != nil {
		return plainLine(err)
	}
	want, seen, buf := message(rversion), []byte(nil), make([]byte, 64<<10)
	for total := 0; total < maxStale; {
		n, err := line.Read(buf)
		if err != nil {
			return plainLine(err)
		}
		total += n
		seen = append(seen, buf[:n]...)
		if i := bytes.Index(seen, want); i >= 0 {
			if i+len(want) != len(seen) {
				return errors.New("the server says more than it was asked")
			}
			return line.SetDeadline(time.Time{})
		}
		seen = seen[max(0, len(seen)-len(want)+1):]
	}
	return fmt.Errorf("%d bytes, and no answer among them", maxStale)
}

func plainLine(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("no answer within %v", settlePatience)
	case err == io.EOF:
		return errors.New("nobody is at the other end")
	}
	return err
}

// relay carries bytes between a line and the kernel's socket until either ends.
type relay struct {
	line, sock *os.File
	over       chan struct{} // closed when both directions have ended
	wg         sync.WaitGroup
	first      atomic.Int32 // which side ended it
	closing    sync.Once
}

const (
	lineEnded int32 = iota + 1
	sockEnded
	closed
)

// startRelay owns line and sock from now on; close ends it.
func startRelay(line, sock *os.File) *relay {
	r := &relay{line: line, sock: sock, over: make(chan struct{})}
	r.wg.Go(func() { r.carry(sock, line, lineEnded, sockEnded) })
	r.wg.Go(func() { r.carry(line, sock, sockEnded, lineEnded) })
	go func() {
		r.wg.Wait()
		close(r.over)
	}()
	return r
}

// carry copies until src or dst ends, and then ends both.
func (r *relay) carry(dst, src *os.File, srcSide, dstSide int32) {
	buf := make([]byte, 256<<10)
	for {
		n, err := src.Read(buf)
		if err != nil {
			r.end(srcSide)
			return
		}
		if _, err := dst.Write(buf[:n]); err != nil {
			r.end(dstSide)
			return
		}
	}
}

func (r *relay) end(side int32) {
	r.first.CompareAndSwap(0, side)
	r.closing.Do(func() {
		r.line.Close()
		r.sock.Close()
	})
}

// hungUp reports whether it was the line that ended.
func (r *relay) hungUp() bool { return r.first.Load() == lineEnded }

// close ends the relay and waits for it. It may be called twice.
func (r *relay) close() {
	r.end(closed)
	<-r.over
}
