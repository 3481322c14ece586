package p9srv_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// chaos makes sequences of messages, mostly sensible, some broken.
type chaos struct {
	r       *rand.Rand
	tag     *wire.Tag // the last one used
	version string    // the dialect it speaks, mostly
}

// versions are the dialects.
var versions = []string{wire.Version9P2000L, wire.Version9P2000U, wire.Version9P2000}

func (c chaos) plain() bool { return c.version == wire.Version9P2000 }

// old is a message of 9P2000.u or 9P2000.
func (c chaos) old() wire.Msg {
	switch c.r.IntN(24) {
	case 0, 1, 2, 3:
		return &wire.Twalk{FID: c.fid(), NewFID: c.fid(), Names: c.names()}
	case 4:
		return &wire.Tattach{FID: c.fid(), AFID: wire.NoFID, Aname: c.name(), Uname: "u", Plain: c.plain()}
	case 5, 6, 7:
		return &wire.Topen{FID: c.fid(), Mode: uint8(c.r.IntN(4)) | uint8(c.r.IntN(8))<<4*uint8(c.r.IntN(2))}
	case 8, 9:
		perm := uint32(0o644)
		if c.r.IntN(2) == 0 {
			perm |= 1 << (16 + c.r.IntN(16))
		}
		text := []string{"", "f", "b 8 0", "c x", "3", "99999999999"}[c.r.IntN(6)]
		return &wire.Tcreate{FID: c.fid(), Name: c.name(), Perm: perm, Mode: uint8(c.r.IntN(4)), Extension: text, Plain: c.plain()}
	case 10, 11, 12:
		return &wire.Tread{FID: c.fid(), Offset: c.offset(), Count: c.count()}
	case 13:
		return &wire.Twrite{FID: c.fid(), Offset: min(c.offset(), 1<<63) & (1<<63 | 0xfff), Data: make([]byte, c.r.IntN(300))}
	case 14, 15:
		return &wire.Tclunk{FID: c.fid()}
	case 16:
		return &wire.Tflush{OldTag: *c.tag - wire.Tag(c.r.IntN(8))}
	case 17:
		return &wire.Tremove{FID: c.fid()}
	case 18, 19:
		return &wire.Tstat{FID: c.fid()}
	case 20, 21:
		return &wire.Twstat{FID: c.fid(), Stat: c.stat()}
	case 22:
		return &wire.Tauth{AFID: c.fid(), Uname: c.name(), Plain: c.plain()}
	}
	return nil
}

// stat changes one thing, several, or everything.
func (c chaos) stat() wire.Stat {
	s := same(wire.Stat{Plain: c.plain()})
	for range c.r.IntN(3) {
		switch c.r.IntN(6) {
		case 0:
			s.Name = c.name()
		case 1:
			s.Length = min(c.offset(), 1<<63) & (1<<63 | 0xfff)
		case 2:
			s.Mode = c.r.Uint32()
		case 3:
			s.Mtime = c.r.Uint32()
		case 4:
			s.GID = c.name()
		case 5:
			s.NUID = p9.UID(c.r.IntN(3))
		}
	}
	return s
}

func (c chaos) fid() wire.FID {
	if c.r.IntN(50) == 0 {
		return wire.NoFID
	}
	return wire.FID(c.r.IntN(6))
}

func (c chaos) name() string {
	names := []string{"a", "b", "f", "g", "block", "strange", "panic", "..", "", ".", "x/y", "\x00"}
	if c.r.IntN(8) > 0 {
		return names[c.r.IntN(5)]
	}
	return names[c.r.IntN(len(names))]
}

func (c chaos) offset() uint64 {
	switch c.r.IntN(8) {
	case 0:
		return c.r.Uint64()
	case 1:
		return 1<<63 - uint64(c.r.IntN(3))
	}
	return uint64(c.r.IntN(20))
}

func (c chaos) count() uint32 {
	if c.r.IntN(8) == 0 {
		return c.r.Uint32()
	}
	return uint32(c.r.IntN(300))
}

func (c chaos) names() []string {
	var all []string
	for range c.r.IntN(4) {
		all = append(all, c.name())
	}
	return all
}

func (c chaos) msg() wire.Msg {
	if c.version != wire.Version9P2000L && c.r.IntN(20) > 0 {
		if m := c.old(); m != nil {
			return m
		}
	}
	switch c.r.IntN(32) {
	case 0, 1, 2, 3:
		return &wire.Twalk{FID: c.fid(), NewFID: c.fid(), Names: c.names()}
	case 4, 5:
		return &wire.Tattach{FID: c.fid(), AFID: wire.NoFID, Aname: c.name(), UID: 0}
	case 6, 7:
		return &wire.Tlopen{FID: c.fid(), Flags: p9.OpenFlags(c.r.IntN(4))}
	case 8:
		return &wire.Tlcreate{FID: c.fid(), Name: c.name(), Flags: p9.OpenFlags(c.r.IntN(4)), Mode: 0o644}
	case 9, 10, 11:
		return &wire.Tread{FID: c.fid(), Offset: c.offset(), Count: c.count()}
	case 12, 13:
		// The tree keeps its files in memory: no far offsets.
		return &wire.Twrite{FID: c.fid(), Offset: min(c.offset(), 1<<63) & (1<<63 | 0xfff), Data: make([]byte, c.r.IntN(300))}
	case 14, 15:
		return &wire.Tclunk{FID: c.fid()}
	case 16, 17:
		return &wire.Tflush{OldTag: *c.tag - wire.Tag(c.r.IntN(8))}
	case 18:
		return &wire.Tremove{FID: c.fid()}
	case 19:
		return &wire.Treaddir{FID: c.fid(), Offset: c.offset(), Count: c.count()}
	case 20:
		return &wire.Trenameat{OldDFID: c.fid(), OldName: c.name(), NewDFID: c.fid(), NewName: c.name()}
	case 21:
		return &wire.Trename{FID: c.fid(), DFID: c.fid(), Name: c.name()}
	case 22:
		return &wire.Tunlinkat{DFID: c.fid(), Name: c.name(), Flags: uint32(c.r.IntN(2)) * wire.UnlinkRemoveDir}
	case 23:
		return &wire.Tmkdir{DFID: c.fid(), Name: c.name(), Mode: 0o755}
	case 24:
		return &wire.Tlink{DFID: c.fid(), FID: c.fid(), Name: c.name()}
	case 25:
		return &wire.Txattrwalk{FID: c.fid(), NewFID: c.fid(), Name: c.name()}
	case 26:
		return &wire.Txattrcreate{FID: c.fid(), Name: c.name(), Size: min(c.offset(), 1<<40), Flags: uint32(c.r.IntN(4))}
	case 27:
		return &wire.Tlock{FID: c.fid(), Type: p9.LockType(c.r.IntN(4)), Client: c.name()}
	case 28:
		return &wire.Tgetattr{FID: c.fid()}
	case 29:
		return &wire.Tsymlink{DFID: c.fid(), Name: c.name(), Target: c.name()}
	}
	if c.r.IntN(4) == 0 {
		version := c.version
		if c.r.IntN(4) == 0 {
			version = versions[c.r.IntN(len(versions))]
		}
		return &wire.Tversion{Msize: 4096 + c.r.Uint32N(8192), Version: version}
	}
	return &wire.Tfsync{FID: c.fid()}
}

// script is n messages with tags, a few of them broken.
func (c chaos) script(n int, broken bool) []byte {
	*c.tag = 0
	b := (&wire.Tversion{Msize: 8192, Version: c.version}).Append(nil, wire.NoTag)
	b = (&wire.Tattach{AFID: wire.NoFID, Uname: "u", Plain: c.plain()}).Append(b, 0)
	for range n {
		m := c.msg()
		*c.tag++
		tag := *c.tag
		if broken && c.r.IntN(100) == 0 {
			tag -= wire.Tag(c.r.IntN(3))
		}
		if m.MsgType() == wire.TypeTversion {
			tag = wire.NoTag
		}
		at := len(b)
		b = m.Append(b, tag)
		if broken && c.r.IntN(40) == 0 {
			b[at+4+c.r.IntN(len(b)-at-4)] ^= byte(1 << c.r.IntN(8))
		}
		if broken && c.r.IntN(400) == 0 {
			b[at+c.r.IntN(4)] ^= byte(1 << c.r.IntN(8))
		}
	}
	return b
}

// session feeds bytes to a live server over a pipe and reads what it answers
// until both are done. Every answer has to be a well-formed message of the
// kind its request asked for, and nothing may be left behind.
func session(t *testing.T, kind string, input []byte) p9srv.Stats {
	fs := newMemfs(kind).put("a/b/f", "f", "g", "block", "panic", "strange")
	srv := p9srv.New(fs, p9srv.Options{MaxMessageSize: 16 << 10, MaxFIDs: 5, MaxRequests: 40, MaxBytes: 256 << 10})
	if kind == "plain" {
		// Nothing else would end a read of a File without a context.
		close(fs.wake)
	}
	mine, theirs := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- srv.ServeConn(context.Background(), theirs) }()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			tag, m, err := readMsg(mine)
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.ErrClosedPipe) {
					t.Errorf("answer: %v", err)
				}
				return
			}
			if m.MsgType().IsRequest() {
				t.Errorf("the server sent %s", wire.Text(tag, m))
			}
		}
	})
	// The server may end the connection before all is written.
	_ = mine.SetWriteDeadline(time.Now().Add(time.Minute))
	_, err := mine.Write(input)
	if errors.Is(err, context.DeadlineExceeded) {
		t.Error("the server takes no more")
	}
	mine.Close()
	wg.Wait()
	<-done
	srv.Close()
	if open, _ := fs.files(); open != 0 {
		t.Errorf("%d Files are left open", open)
	}
	s := srv.Stats()
	if s.FIDs != 0 || s.Open != 0 {
		t.Errorf("left: %+v", s)
	}
	return s
}

// TestChaos holds random sessions with every kind of tree.
func TestChaos(t *testing.T) {
	testutil.CheckLeaks(t)
	c := chaos{testutil.Rand(t), new(wire.Tag), ""}
	rounds := 60
	var errs, all uint64
	if testutil.Long() {
		rounds = 20000
	}
	for i := range rounds {
		for _, kind := range []string{"plain", "concurrent", "inplace", "fickle"} {
			c.version = versions[i/2%len(versions)]
			s := session(t, kind, c.script(300, i%2 == 1))
			// A sound script is taken to its end.
			if i%2 == 0 && s.Requests != 302 {
				t.Errorf("%s: %d of 302 messages were taken", kind, s.Requests)
			}
			errs += s.Errors
			all += s.Requests
		}
	}
	// Most of it has to make sense, or the test tests error paths only.
	if errs*10 > all*9 {
		t.Errorf("%d of %d requests failed", errs, all)
	}
	t.Logf("%d of %d requests failed", errs, all)
}

// FuzzSession feeds what the fuzzer makes of such sessions. Sizes are set
// right, so that it gets past the framing.
func FuzzSession(f *testing.F) {
	for seed := range uint64(12) {
		c := chaos{rand.New(rand.NewPCG(seed, 1)), new(wire.Tag), versions[seed/2%3]}
		f.Add(c.script(40, seed%2 == 1))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return
		}
		for at := 0; at+wire.HeaderSize <= len(b); {
			n := int(binary.LittleEndian.Uint32(b[at:]) & 0xfff)
			n = min(max(n, wire.HeaderSize), len(b)-at)
			binary.LittleEndian.PutUint32(b[at:], uint32(n))
			at += n
		}
		session(t, "inplace", b)
		session(t, "plain", b)
	})
}
