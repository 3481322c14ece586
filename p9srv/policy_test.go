package p9srv_test

import (
	"testing"

	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/wire"
	"golang.org/x/sys/unix"
)

// TestPolicy tries every message that makes devices, or files that run as their
// owner.
func TestPolicy(t *testing.T) {
	testutil.CheckLeaks(t)
	chmod := func(fid wire.FID, mode p9.FileMode) wire.Msg {
		return &wire.Tsetattr{FID: fid, Valid: p9.SetAttrMask{Permissions: true}, Attr: p9.SetAttr{Permissions: mode}}
	}
	dotl := []wire.Msg{
		&wire.Tmknod{DFID: root, Name: "b", Mode: unix.S_IFBLK | 0o600},
		&wire.Tmknod{DFID: root, Name: "c", Mode: unix.S_IFCHR | 0o600},
		&wire.Tmknod{DFID: root, Name: "r", Mode: unix.S_IFREG | 0o4755},
		&wire.Tmknod{DFID: root, Name: "u", Mode: 0o2755},
		&wire.Tlcreate{FID: 1, Name: "s", Mode: 0o104755},
		chmod(2, 0o4755), chmod(2, 0o2755),
		&wire.Txattrcreate{FID: 2, Name: "security.capability", Size: 20},
	}
	unixes := []wire.Msg{
		&wire.Tcreate{FID: 1, Name: "b", Perm: wire.DMDevice | 0o600, Extension: "b 8 0"},
		&wire.Tcreate{FID: 1, Name: "s", Perm: wire.DMSetUID | 0o755},
		&wire.Tcreate{FID: 1, Name: "p", Perm: wire.DMNamedPipe | wire.DMSetGID | 0o755},
		&wire.Twstat{FID: 2, Stat: same(wire.Stat{Mode: wire.DMSetUID | 0o755})},
	}
	for version, msgs := range map[string][]wire.Msg{wire.Version9P2000L: dotl, wire.Version9P2000U: unixes} {
		for _, m := range msgs {
			for _, barred := range []bool{true, false} {
				fs := newMemfs("concurrent").put("f")
				_, r := serveRaw(t, fs, p9srv.Options{NoDevices: barred, NoSetID: barred})
				r.ok(&wire.Tversion{Msize: 8192, Version: version})
				r.ok(attach())
				r.ok(walk(root, 1))
				r.ok(walk(root, 2, "f"))
				answer := r.rpc(m)
				refused := false
				switch e := answer.(type) {
				case *wire.Rlerror:
					refused = e.Errno == uint32(unix.EPERM)
				case *wire.Rerror:
					refused = e.Errno == uint32(unix.EPERM)
				}
				if refused != barred {
					t.Errorf("%s, barred %v: %s", wire.Text(1, m), barred, wire.Text(1, answer))
				}
			}
		}
	}
	// What is no danger goes on.
	fs := newMemfs("concurrent").put("f")
	_, r := serveRaw(t, fs, p9srv.Options{NoDevices: true, NoSetID: true})
	r.attach()
	r.ok(&wire.Tmknod{DFID: root, Name: "p", Mode: unix.S_IFIFO | 0o600})
	r.ok(&wire.Tmkdir{DFID: root, Name: "d", Mode: 0o2775})
	r.ok(walk(root, 1, "d"))
	r.ok(chmod(1, 0o3777))
}
