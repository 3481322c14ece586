package cli

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/p9srv"
)

// attached notes who came through.
type attached struct{ user *p9srv.User }

func (a attached) Attach() (p9.File, error) { return nil, nil }
func (a attached) AttachAs(_ context.Context, u p9srv.User, _ string) (p9.File, error) {
	*a.user = u
	return nil, nil
}

func TestLoopbackProof(t *testing.T) {
	for _, tt := range []struct {
		name  string
		owner uint32
		known bool
		claim uint32
		in    bool
	}{
		{"own user", 1000, true, 1000, true},
		{"root as anybody", 0, true, 1000, true},
		{"claims root", 1000, true, 0, false},
		{"claims another", 1000, true, 1001, false},
		{"no such socket", 0, false, 1000, false},
	} {
		var got p9srv.User
		l := loopbackProof{attached{&got}, netip.MustParseAddrPort("127.0.0.1:564"),
			func(netip.AddrPort, netip.AddrPort) (uint32, bool, error) { return tt.owner, tt.known, nil }}
		_, err := l.AttachAs(t.Context(), p9srv.User{UID: tt.claim, Peer: "127.0.0.1:99"}, "")
		if tt.in && (err != nil || !got.Proven || got.UID != tt.claim) {
			t.Errorf("%s: %v, %+v", tt.name, err, got)
		}
		if !tt.in && !errors.Is(err, syscall.EACCES) {
			t.Errorf("%s: %v, want EACCES", tt.name, err)
		}
	}
}

func TestOwnUser(t *testing.T) {
	me := uint32(os.Geteuid())
	for _, tt := range []struct {
		u  p9srv.User
		in bool
	}{
		{p9srv.User{UID: me, Proven: true}, true},
		{p9srv.User{UID: 0, Proven: true}, true},
		{p9srv.User{UID: me}, false},
		{p9srv.User{UID: me + 1, Proven: true}, false},
	} {
		var got p9srv.User
		_, err := ownUser{attached{&got}}.AttachAs(t.Context(), tt.u, "")
		if tt.in != (err == nil) {
			t.Errorf("%+v: %v", tt.u, err)
		}
	}
}
