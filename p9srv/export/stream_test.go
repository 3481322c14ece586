package export

import (
	"bytes"
	"context"
	"errors"
	"io"
	"syscall"
	"testing"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
)

// TestStreamLosesNothing reads a stream in pieces of any size, some of them
// twice, as a client does whose answers get lost.
func TestStreamLosesNothing(t *testing.T) {
	rnd := testutil.Rand(t)
	var all []byte
	made := 0
	s := newStream(func(_ context.Context, b []byte, _ int) ([]byte, error) {
		if made == 500 {
			all = append(all, "end"...)
			return append(b, "end"...), io.EOF
		}
		made++
		for range 1 + rnd.IntN(90) {
			c := byte(rnd.Uint32())
			b, all = append(b, c), append(all, c)
		}
		return b, nil
	})
	var got []byte
	base := int64(rnd.IntN(1000))
	for {
		p := make([]byte, 1+rnd.IntN(64))
		n, err := s.readAt(t.Context(), p, base+int64(len(got)))
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		switch rnd.IntN(3) {
		case 0: // lost: asked for again
		case 1: // taken in part
			got = append(got, p[:rnd.IntN(n+1)]...)
		default:
			got = append(got, p[:n]...)
		}
	}
	if !bytes.Equal(got, all) {
		t.Fatal(len(got), len(all))
	}
}

func TestStreamErrors(t *testing.T) {
	fail := errors.New("fail")
	s := newStream(func(_ context.Context, b []byte, _ int) ([]byte, error) { return b, fail })
	if _, err := s.readAt(t.Context(), make([]byte, 1), 0); !errors.Is(err, fail) {
		t.Fatal(err)
	}
	s.turn <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.readAt(ctx, make([]byte, 1), 0); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestCheckRecordKnowsEveryOp(t *testing.T) {
	for op := kml.OpCreate; op <= kml.OpMark; op++ {
		r := &kml.Record{Op: op, Origin: kml.Origin{Site: 2, Seq: 1}, OID: kml.MakeOID(2, 1), Parent: kml.RootOID, Name: "n",
			NewParent: kml.RootOID, NewName: "m", Mask: kml.MaskMode, Target: "t"}
		modes := map[kml.Op]uint32{kml.OpCreate: syscall.S_IFREG, kml.OpMkdir: syscall.S_IFDIR, kml.OpSymlink: syscall.S_IFLNK, kml.OpMknod: syscall.S_IFIFO}
		r.Attr.Mode = modes[op]
		if err := checkRecord(r, 2, neverMinted); (err != nil) != (op == kml.OpMark) {
			t.Errorf("%v: %v", op, err)
		}
		if err := checkRecord(r, 3, neverMinted); err == nil {
			t.Errorf("%v of another site", op)
		}
	}
	if err := checkRecord(&kml.Record{Op: kml.OpMark + 1, Origin: kml.Origin{Site: 2, Seq: 1}, OID: 5}, 2, neverMinted); !errors.Is(err, syscall.EPERM) {
		t.Error(err)
	}
}

func neverMinted(kml.OID) bool { return false }
