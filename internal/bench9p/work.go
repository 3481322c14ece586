package bench9p

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/p9srv/wire"
)

// The tree that is served: see makeTree.
const (
	bigSize    = 64 << 20
	blockSize  = 4 << 10
	dirEntries = 10_000
)

// Fids of every connection besides the slots'.
const (
	fidRoot wire.FID = iota
	fidSmall
	fidRead
	fidWrite
	fidDir // a folder of the connection's own
)

// row is a line of the table. round sends the next message of slot s, after
// answer if that is not nil; more is false when the answer was the last.
type row struct {
	name   string
	memory bool // on the file system in memory: the disk's journal would be measured
	data   bool // a round moves as much data as a message may
	// before is run before each lot of n rounds and not measured.
	before func(c *conn, n int) error
	most   int // rounds in a lot
	round  func(s *slot, answer []byte) (more bool, err error)
}

var block = make([]byte, askMsize)

// steps makes a round of messages that do not depend on answers.
func steps(send ...func(s *slot) error) func(*slot, []byte) (bool, error) {
	return func(s *slot, _ []byte) (bool, error) {
		if s.step == len(send) {
			return false, nil
		}
		return true, send[s.step](s)
	}
}

func msg(m func(s *slot) wire.Msg) func(*slot) error {
	return func(s *slot) error { s.send(m(s)); return nil }
}

func walk(from wire.FID, names ...string) func(*slot) error {
	return msg(func(s *slot) wire.Msg { return &wire.Twalk{FID: from, NewFID: s.fid, Names: names} })
}

func clunk(s *slot) error { s.send(&wire.Tclunk{FID: s.fid}); return nil }

// name is a name of the slot's own in fidDir.
func (s *slot) name() string { return fmt.Sprintf("s%d", s.num) }

// next is the offset of the next piece of n bytes of the large file.
func (s *slot) next(n int) uint64 {
	off := s.c.seq
	if off+uint64(n) > bigSize {
		off = 0
	}
	s.c.seq = off + uint64(n)
	return off
}

func (s *slot) randomBlock() uint64 { return uint64(s.c.rand.IntN(bigSize/blockSize)) * blockSize }

// rows is the table.
func rows() []row {
	readBlock := func(s *slot) error { s.send(&wire.Tread{FID: s.fid, Count: blockSize}); return nil }
	return []row{
		{name: "getattr", round: steps(msg(func(*slot) wire.Msg {
			return &wire.Tgetattr{FID: fidSmall, Mask: p9.AttrMaskAll}
		}))},
		{name: "walk 3+getattr+clunk", round: steps(walk(fidRoot, "d", "e", "f"), msg(func(s *slot) wire.Msg {
			return &wire.Tgetattr{FID: s.fid, Mask: p9.AttrMaskAll}
		}), clunk)},
		{name: "clone+clunk", round: steps(walk(fidRoot), clunk)},
		{name: "open+read 4K+clunk", round: steps(walk(fidRoot, "f"), msg(func(s *slot) wire.Msg {
			return &wire.Tlopen{FID: s.fid}
		}), readBlock, clunk)},
		{name: "create+write 4K+clunk", memory: true, round: create(true), before: unlinkAll, most: 2000},
		{name: "unlink", round: unlink, before: func(c *conn, n int) error {
			return errors.Join(unlinkAll(c, n), c.run(n, create(false)))
		}, most: 2000},
		{name: "rename", before: makeOne, round: func(s *slot, answer []byte) (bool, error) {
			if answer != nil {
				return false, nil
			}
			from, to := s.name(), s.name()+"x"
			if s.off++; s.off%2 == 0 {
				from, to = to, from
			}
			if s.c.oldNames {
				s.send(&wire.Trename{FID: s.fid, DFID: fidDir, Name: to})
			} else {
				s.send(&wire.Trenameat{OldDFID: fidDir, OldName: from, NewDFID: fidDir, NewName: to})
			}
			return true, nil
		}},
		{name: "random read 4K", round: steps(msg(func(s *slot) wire.Msg {
			return &wire.Tread{FID: fidRead, Offset: s.randomBlock(), Count: blockSize}
		}))},
		{name: "random write 4K", round: steps(func(s *slot) error {
			return s.write(fidWrite, s.randomBlock(), block[:blockSize])
		})},
		{name: "sequential read", data: true, round: steps(msg(func(s *slot) wire.Msg {
			n := s.c.payload()
			return &wire.Tread{FID: fidRead, Offset: s.next(n), Count: uint32(n)}
		}))},
		{name: "sequential write", data: true, round: steps(func(s *slot) error {
			n := s.c.payload()
			return s.write(fidWrite, s.next(n), block[:n])
		})},
		{name: "write 4K+fsync", round: steps(func(s *slot) error {
			return s.write(fidWrite, s.randomBlock(), block[:blockSize])
		}, msg(func(*slot) wire.Msg { return &wire.Tfsync{FID: fidWrite} }))},
		{name: "readdir 10,000", round: readdir},
		{name: "mkdir+rmdir", memory: true, round: mkdir},
	}
}

func create(write bool) func(*slot, []byte) (bool, error) {
	send := []func(*slot) error{
		walk(fidDir),
		msg(func(s *slot) wire.Msg {
			s.c.files++
			return &wire.Tlcreate{FID: s.fid, Name: fmt.Sprintf("f%d", s.c.files), Flags: p9.WriteOnly, Mode: 0o644}
		}),
		func(s *slot) error { return s.write(s.fid, 0, block[:blockSize]) },
		clunk,
	}
	if !write {
		send = append(send[:2], clunk)
	}
	return steps(send...)
}

// unlink is Tunlinkat, or a walk and Tremove.
func unlink(s *slot, answer []byte) (bool, error) {
	switch {
	case answer == nil:
		name := fmt.Sprintf("f%d", s.c.files)
		s.c.files--
		if s.c.oldNames {
			return true, walk(fidDir, name)(s)
		}
		s.send(&wire.Tunlinkat{DFID: fidDir, Name: name})
		return true, nil
	case s.want == wire.TypeRwalk:
		s.send(&wire.Tremove{FID: s.fid})
		return true, nil
	}
	return false, nil
}

// remove removes an entry of a folder, outside any row.
func (c *conn) remove(dir wire.FID, name string, flags uint32) error {
	if !c.oldNames {
		return c.call(&wire.Tunlinkat{DFID: dir, Name: name, Flags: flags}, nil)
	}
	const fid = 999
	if err := c.call(&wire.Twalk{FID: dir, NewFID: fid, Names: []string{name}}, nil); err != nil {
		return err
	}
	return c.call(&wire.Tremove{FID: fid}, nil)
}

// unlinkAll removes what create made.
func unlinkAll(c *conn, _ int) error { return c.run(int(c.files), unlink) }

// mkdir makes a folder and removes it.
func mkdir(s *slot, answer []byte) (bool, error) {
	name := s.name() + "d"
	switch {
	case answer == nil:
		s.send(&wire.Tmkdir{DFID: fidDir, Name: name, Mode: 0o755})
	case s.want == wire.TypeRmkdir && s.c.oldNames:
		return true, walk(fidDir, name)(s)
	case s.want == wire.TypeRmkdir:
		s.send(&wire.Tunlinkat{DFID: fidDir, Name: name, Flags: wire.UnlinkRemoveDir})
	case s.want == wire.TypeRwalk:
		s.send(&wire.Tremove{FID: s.fid})
	default:
		return false, nil
	}
	return true, nil
}

// makeOne makes the file of each slot that rename moves to and fro.
func makeOne(c *conn, _ int) error {
	for i := range c.slots {
		s := &c.slots[i]
		if s.made {
			continue
		}
		s.made, s.off = true, 0
		err := errors.Join(
			c.call(&wire.Twalk{FID: fidDir, NewFID: s.fid}, nil),
			c.call(&wire.Tlcreate{FID: s.fid, Name: s.name(), Flags: p9.WriteOnly, Mode: 0o644}, nil),
			c.call(&wire.Tclunk{FID: s.fid}, nil),
			c.call(&wire.Twalk{FID: fidDir, NewFID: s.fid, Names: []string{s.name()}}, nil))
		if err != nil {
			return err
		}
	}
	return nil
}

// readdir opens the large folder and reads until it ends.
func readdir(s *slot, answer []byte) (bool, error) {
	read := func(off uint64) {
		s.send(&wire.Treaddir{FID: s.fid, Offset: off, Count: uint32(s.c.payload())})
	}
	switch {
	case answer == nil:
		return true, walk(fidRoot, "many")(s)
	case s.want == wire.TypeRwalk:
		s.send(&wire.Tlopen{FID: s.fid, Flags: p9.ReadOnly})
		s.entries = 0
		return true, nil
	case s.want == wire.TypeRlopen:
		read(0)
		return true, nil
	case s.want == wire.TypeRclunk:
		return false, nil
	}
	if len(answer) < 4 {
		return false, syscall.EPROTO
	}
	data, last := answer[4:], uint64(0)
	if len(data) == 0 {
		// "." and ".." are among them, or not.
		if s.entries < dirEntries {
			return false, fmt.Errorf("folder with %d of %d entries", s.entries, dirEntries)
		}
		return true, clunk(s)
	}
	for len(data) >= wire.QIDSize+11 {
		n := wire.QIDSize + 11 + int(binary.LittleEndian.Uint16(data[wire.QIDSize+9:]))
		if n > len(data) {
			return false, syscall.EPROTO
		}
		last = binary.LittleEndian.Uint64(data[wire.QIDSize:])
		data = data[n:]
		s.entries++
	}
	read(last)
	return true, nil
}

// prepare gives a connection its fids.
func (c *conn) prepare() error {
	dir := fmt.Sprintf("w%d", c.num)
	err := c.call(&wire.Tmkdir{DFID: fidRoot, Name: dir, Mode: 0o755}, nil)
	if errors.Is(err, syscall.EEXIST) {
		err = nil
	}
	none := c.call(&wire.Tunlinkat{DFID: fidRoot, Name: "none"}, nil)
	c.oldNames = errors.Is(none, syscall.EOPNOTSUPP)
	return errors.Join(err,
		c.call(&wire.Twalk{FID: fidRoot, NewFID: fidDir, Names: []string{dir}}, nil),
		c.call(&wire.Twalk{FID: fidRoot, NewFID: fidSmall, Names: []string{"f"}}, nil),
		c.call(&wire.Twalk{FID: fidRoot, NewFID: fidRead, Names: []string{"big"}}, nil),
		c.call(&wire.Tlopen{FID: fidRead, Flags: p9.ReadOnly}, nil),
		c.call(&wire.Twalk{FID: fidRoot, NewFID: fidWrite, Names: []string{"out"}}, nil),
		c.call(&wire.Tlopen{FID: fidWrite, Flags: p9.ReadWrite}, nil))
}

// cleanUp removes what rows left behind, the folder too.
func (c *conn) cleanUp() error {
	err := unlinkAll(c, 0)
	for i := range c.slots {
		s := &c.slots[i]
		if !s.made {
			continue
		}
		name := s.name()
		if s.off%2 == 1 {
			name += "x"
		}
		err = errors.Join(err, c.call(&wire.Tclunk{FID: s.fid}, nil), c.remove(fidDir, name, 0))
	}
	for _, fid := range []wire.FID{fidSmall, fidRead, fidWrite, fidDir} {
		err = errors.Join(err, c.call(&wire.Tclunk{FID: fid}, nil))
	}
	return errors.Join(err, c.remove(fidRoot, fmt.Sprintf("w%d", c.num), wire.UnlinkRemoveDir),
		c.call(&wire.Tclunk{FID: fidRoot}, nil))
}
