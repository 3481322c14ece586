package feed

import (
	"errors"
	"testing"
	"time"

	"github.com/mezzofs/mezzo/kml"
)

func asks() []Ask {
	l := FileLock{Kind: LockPOSIX, Type: LockWrite, Start: 10, End: 19, PID: 7}
	whole := FileLock{Kind: LockFlock, Type: LockNone, End: ^uint64(0)}
	oid := kml.MakeOID(3, 9)
	return []Ask{
		{Tag: 1, Verb: AskAt}, {Tag: 2, Verb: AskBye},
		{Tag: 3, Verb: AskLock, OID: oid, Owner: 1 << 63, Lock: l, Wait: true},
		{Tag: 4, Verb: AskLock, OID: oid, Lock: whole},
		{Tag: 5, Verb: AskTest, OID: oid, Owner: 4, Lock: l},
		{Tag: 9, Verb: AskSite, Site: 7, Key: "00ff"}, {Tag: 6, Verb: AskUnlock, OID: oid, Owner: 4}, {Tag: 7, Verb: AskCancel, Of: 3},
		{Tag: 8, Verb: AskTake, Lease: LeaseNames, OID: kml.RootOID}, {Tag: 1<<64 - 1, Verb: AskFree, Lease: LeaseWrite, OID: oid},
	}
}

func replies() []Reply {
	oid := kml.MakeOID(3, 9)
	return []Reply{
		{Tag: 1, Say: SayOK, Pos: kml.MakePosition(1, 77), For: 5 * time.Second},
		{Tag: 2, Say: SayHeld, Lock: FileLock{Kind: LockFlock, Type: LockRead, Start: 1, End: 1<<64 - 1, PID: 1}},
		{Tag: 3, Say: SayNo, Errno: 11}, {Say: SayRecall, Lease: LeaseNames, OID: oid}, {Say: SayGone, Lease: LeaseWrite, OID: oid},
	}
}

func TestPermitLines(t *testing.T) {
	for _, a := range asks() {
		if got, err := ParseAsk(a.String()); got != a || err != nil {
			t.Errorf("%q: %+v, %v", a, got, err)
		}
	}
	for _, r := range replies() {
		if got, err := ParseReply(r.String()); got != r || err != nil {
			t.Errorf("%q: %+v, %v", r, got, err)
		}
	}
	for _, line := range []string{
		"", "at", "0 at", "1 at ", "01 at", "+1 at", "1 nothing", "1 take all 1:2", "1 take names 1:2 3", "1 take names x",
		"1 lock 1:2 3 4 posix write 9 8 try", "1 lock 1:2 3 4 posix write 0 8 maybe", "1 test 1:2 3 4 posix none 0 8", "1 cancel",
		"1 lock 1:2 3 4294967296 posix write 0 8 try", "18446744073709551616 at",
	} {
		if a, err := ParseAsk(line); !errors.Is(err, ErrRequest) {
			t.Errorf("%q: %+v, %v", line, a, err)
		}
		if r, err := ParseReply(line); !errors.Is(err, ErrRequest) {
			t.Errorf("%q: %+v, %v", line, r, err)
		}
	}
}

// FuzzPermit reads any line: what is understood means the same when it is written
// again.
func FuzzPermit(f *testing.F) {
	for _, a := range asks() {
		f.Add(a.String())
	}
	for _, r := range replies() {
		f.Add(r.String())
	}
	f.Fuzz(func(t *testing.T, line string) {
		if a, err := ParseAsk(line); err == nil {
			if b, err := ParseAsk(a.String()); a != b || err != nil {
				t.Fatal(a, b, err)
			}
		}
		if r, err := ParseReply(line); err == nil {
			if q, err := ParseReply(r.String()); r != q || err != nil {
				t.Fatal(r, q, err)
			}
		}
	})
}
