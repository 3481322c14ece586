package p9srv_test

import (
	"context"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/wire"
	"golang.org/x/sys/unix"
)

// requests are one of each, on a fid.
func requests(fid wire.FID) []wire.Msg {
	return []wire.Msg{
		&wire.Tstatfs{FID: fid}, &wire.Tlopen{FID: fid}, &wire.Tlcreate{FID: fid, Name: "x"},
		&wire.Tsymlink{DFID: fid, Name: "x", Target: "y"}, &wire.Tmknod{DFID: fid, Name: "x", Mode: 0o10600},
		&wire.Trename{FID: fid, DFID: fid, Name: "x"}, &wire.Treadlink{FID: fid}, &wire.Tgetattr{FID: fid},
		&wire.Tsetattr{FID: fid}, &wire.Txattrwalk{FID: fid, NewFID: 77}, &wire.Txattrcreate{FID: fid, Name: "user.x"},
		&wire.Treaddir{FID: fid, Count: 100}, &wire.Tfsync{FID: fid}, &wire.Tlock{FID: fid}, &wire.Tgetlock{FID: fid},
		&wire.Tlink{DFID: fid, FID: fid, Name: "x"}, &wire.Tmkdir{DFID: fid, Name: "x"},
		&wire.Trenameat{OldDFID: fid, OldName: "x", NewDFID: fid, NewName: "y"}, &wire.Tunlinkat{DFID: fid, Name: "x"},
		&wire.Twalk{FID: fid, NewFID: 77, Names: []string{"x"}}, &wire.Tread{FID: fid, Count: 1},
		&wire.Twrite{FID: fid, Data: []byte("x")}, &wire.Tremove{FID: fid}, &wire.Tclunk{FID: fid},
	}
}

func TestUnknownFids(t *testing.T) {
	testutil.CheckLeaks(t)
	_, r := serveRaw(t, newMemfs("inplace").put("f"), p9srv.Options{})
	r.attach()
	for _, fid := range []wire.FID{1, 999, wire.NoFID} {
		for _, m := range requests(fid) {
			r.fails(m, unix.EBADF)
		}
	}
	r.fails(walk(root, wire.NoFID), unix.EBADF)
	r.ok(&wire.Tgetattr{FID: root})
}

func TestHugeWalks(t *testing.T) {
	testutil.CheckLeaks(t)
	_, r := serveRaw(t, newMemfs("inplace").put("a/f"), p9srv.Options{})
	r.attach()
	up := slices.Repeat([]string{".."}, 15)
	r.ok(walk(root, 1, append(up, "a")...))
	r.ok(&wire.Tclunk{FID: 1})
	// More than a client may send, as long as the message is whole.
	for _, n := range []int{17, 1000} {
		r.rpc(walk(root, 1, slices.Repeat([]string{".."}, n)...))
		r.rpc(&wire.Tclunk{FID: 1})
	}
	if e, ok := r.rpc(walk(root, 1, strings.Repeat("x", 5000))).(*wire.Rlerror); !ok || e.Errno != uint32(unix.ENAMETOOLONG) {
		t.Error("a name of 5,000 bytes was walked to")
	}
	// As many names as a message can claim, and none of them there.
	frame := walk(root, 2).Append(nil, 6)
	copy(frame[len(frame)-2:], "\xff\xff")
	r.bytes(frame)
	if tag, m := r.recv(); tag != 6 || m.MsgType() != wire.TypeRlerror {
		t.Fatal(wire.Text(tag, m))
	}
}

func TestZeroCountsAndFarOffsets(t *testing.T) {
	testutil.CheckLeaks(t)
	for _, kind := range []string{"plain", "concurrent", "inplace"} {
		_, r := serveRaw(t, newMemfs(kind).put("f"), p9srv.Options{})
		r.attach().openPath(1, p9.ReadWrite, "f")
		r.openPath(2, 0)
		r.ok(&wire.Tread{FID: 1})
		r.ok(&wire.Twrite{FID: 1})
		r.rpc(&wire.Treaddir{FID: 2}) // EINVAL, or no entries
		r.ok(walk(1, 3))
		r.ok(&wire.Txattrcreate{FID: 3, Name: "user.empty"})
		r.ok(&wire.Tclunk{FID: 3})
		for _, off := range []uint64{1 << 63, math.MaxUint64, math.MaxInt64} {
			for _, m := range []wire.Msg{
				&wire.Tread{FID: 1, Offset: off, Count: 10}, &wire.Twrite{FID: 1, Offset: off, Data: []byte("xx")},
				&wire.Treaddir{FID: 2, Offset: off, Count: 1000}, &wire.Tlock{FID: 1, Start: off, Length: off},
				&wire.Tsetattr{FID: 1, Valid: p9.SetAttrMask{Size: true}, Attr: p9.SetAttr{Size: off | 1<<63}},
			} {
				switch a := r.rpc(m).(type) {
				case *wire.Rwrite:
					t.Errorf("%s: %s is answered with %s", kind, wire.Text(1, m), wire.Text(1, a))
				case *wire.Rread:
					if len(a.Data) > 0 {
						t.Errorf("%s: read %q at %d", kind, a.Data, off)
					}
				}
			}
		}
		if a := r.ok(&wire.Tgetattr{FID: 1, Mask: p9.AttrMaskAll}).(*wire.Rgetattr); a.Attr.Size > 100 {
			t.Errorf("%s: the file has %d bytes", kind, a.Attr.Size)
		}
	}
}

// TestFlushEverything flushes half of all tags, some of them in use, with the
// other half.
func TestFlushEverything(t *testing.T) {
	testutil.CheckLeaks(t)
	fs := newMemfs("concurrent").put("block")
	_, r := serveRaw(t, fs, p9srv.Options{})
	r.attach().openPath(1, 0, "block")
	const busy, tags = 20, 1<<15 - 1
	for i := range wire.Tag(busy) {
		r.send(100+i, &wire.Tread{FID: 1, Count: 1})
		<-fs.blocked
	}
	go func() {
		for tag := range wire.Tag(tags) {
			b := (&wire.Tflush{OldTag: tag}).Append(nil, tags+tag)
			if _, err := r.c.Write(b); err != nil {
				return
			}
		}
	}()
	cut, flushed := 0, 0
	for flushed < tags {
		switch tag, m := r.recv(); m.MsgType() {
		case wire.TypeRflush:
			flushed++
		case wire.TypeRlerror:
			cut++
			if tag < 100 || tag >= 100+busy {
				t.Fatal(wire.Text(tag, m))
			}
		default:
			t.Fatal(wire.Text(tag, m))
		}
	}
	if cut != busy {
		t.Errorf("%d of %d requests ended", cut, busy)
	}
	r.ok(&wire.Tgetattr{FID: root})
}

// TestHostileMemory sends nonsense for long: nothing of it stays.
func TestHostileMemory(t *testing.T) {
	testutil.CheckLeaks(t)
	srv := p9srv.New(newMemfs("inplace").put("f"), p9srv.Options{})
	defer srv.Close()
	mine, theirs := socketpair(t)
	defer mine.Close()
	go srv.ServeConn(context.Background(), theirs)
	r := &raw{t, mine}
	r.attach()
	var bad []byte
	n := 0
	add := func(m wire.Msg) { bad, n = m.Append(bad, wire.Tag(n)), n+1 }
	for _, m := range requests(999) {
		add(m)
	}
	add(walk(root, 1, slices.Repeat([]string{"none"}, 16)...))
	add(&wire.Txattrcreate{FID: 999, Name: "user.x", Size: math.MaxUint64})
	add(&wire.Tread{FID: 999, Count: math.MaxUint32})
	add(&wire.Tattach{FID: root, AFID: wire.NoFID, Uname: strings.Repeat("u", 3000)})
	add(&wire.Tmkdir{DFID: root, Name: strings.Repeat("n", 3000)})
	add(&wire.Tflush{OldTag: 4242})
	round := func(times int) uint64 {
		for range times {
			done := make(chan struct{})
			go func() {
				defer close(done)
				for range n {
					r.recv()
				}
			}()
			r.bytes(bad)
			<-done
		}
		r.ok(version()) // drops what the session has
		r.ok(attach())
		for range 3 {
			runtime.GC()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	before := round(50)
	after := round(1500)
	if slack := uint64(2 << 20); after > before+slack {
		t.Errorf("%d bytes in use, %d before", after, before)
	}
}
