package p9srv

import (
	"encoding/binary"
	"io"
	"math"

	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/p9srv/wire"
)

// This file writes large data to its file while it comes in: what stands in a
// buffer that fits into the processor's cache is copied for half the price, and
// the client fills the socket meanwhile.

const (
	partsMin  = 128 << 10 // the smallest message that is written in parts
	partsBuf  = 256 << 10
	partLeast = 32 << 10
	partAlign = 4 << 10 // parts end where a block of the file ends
	writeHead = wire.HeaderSize + 4 + 8 + 4
)

// parts is a Twrite that is being received.
type parts struct {
	off  int64
	left int
	done int   // bytes written
	err  error // nothing more is
}

// writeParts answers a Twrite of which have is the beginning, if it can be
// written in parts. What is wrong about the message is found by others.
func (s *session) writeParts(have []byte) (ok bool, err error) {
	if len(have) < writeHead || wire.Type(have[4]) != wire.TypeTwrite || s.msize == 0 || s.srv.opts.Trace != nil {
		return false, nil
	}
	size := binary.LittleEndian.Uint32(have)
	off := binary.LittleEndian.Uint64(have[wire.HeaderSize+4:])
	count := binary.LittleEndian.Uint32(have[wire.HeaderSize+12:])
	if uint64(count) != uint64(size)-writeHead || off > math.MaxInt64-uint64(count) {
		return false, nil
	}
	tag := wire.Tag(binary.LittleEndian.Uint16(have[5:]))
	s.mu.Lock()
	sl := s.fids[wire.FID(binary.LittleEndian.Uint32(have[wire.HeaderSize:]))]
	ok = sl != nil && s.tags[tag] == nil && sl.free(false) && sl.takesParts()
	s.mu.Unlock()
	if !ok {
		return false, nil
	}
	s.requests++
	s.inPlace++
	s.r += writeHead
	p := parts{off: int64(off), left: int(count)}
	s.call = call{s: s, typ: wire.TypeTwrite, tag: tag, a: sl}
	for p.left > 0 {
		if !s.writePart(&p) {
			if err := s.fill(min(p.left, partsBuf)); err != nil {
				return false, err
			}
		}
	}
	c := &s.call
	if s.out == nil {
		s.out = s.srv.bufs.get(outSize)
	}
	c.out, c.from = s.out, len(s.out)
	if p.done > 0 {
		p.err = nil // the client comes again with the rest
	}
	if p.err == nil {
		c.out = (&wire.Rwrite{Count: uint32(p.done)}).Append(c.out, tag)
	}
	c.finishAnswer(p.err)
	s.out = c.out
	return true, nil
}

// takesParts says that a fid may be written to in parts, in place.
func (sl *fidState) takesParts() bool {
	if !sl.live || !sl.opened || sl.xattr != nil || sl.place != nil || sl.flags.Mode() == p9.ReadOnly {
		return false
	}
	w, ok := sl.file.(PartWriter)
	if !ok || !w.WritesInParts() {
		return false
	}
	i, ok := sl.file.(InPlacer)
	return ok && i.InPlace(OpWrite)
}

// writePart writes what has come; false when that is too little yet.
func (s *session) writePart(p *parts) bool {
	n := min(s.w-s.r, p.left)
	if n < p.left {
		n = int((p.off+int64(n))&^(partAlign-1) - p.off)
		if n < partLeast {
			return false
		}
	}
	data := s.in[s.r : s.r+n]
	s.r += n
	p.left -= n
	if p.err == nil {
		var k int
		p.err = s.guard(func() (err error) {
			k, err = s.call.writeFile(s.call.a, data, p.off)
			return err
		})
		p.done += k
		if k < n && p.err == nil {
			p.err = io.ErrShortWrite // not sent: something was written
		}
	}
	p.off += int64(n)
	return true
}
