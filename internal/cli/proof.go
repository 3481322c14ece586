package cli

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/p9srv"
)

// attacher is a 9P tree that wants to know who attaches.
type attacher interface {
	p9.Attacher
	p9srv.AttacherAs
}

// loopbackProof stands before a tree at a TCP address of this machine. There
// the kernel knows whose socket the other end is, as with a unix socket: users
// are who they say they are if it is theirs or root's, and others stay out.
// Without it any local user could claim to be root.
type loopbackProof struct {
	attacher
	own   netip.AddrPort // of the listener
	owner func(peer, own netip.AddrPort) (uid uint32, ok bool, err error)
}

// AttachAs attaches u with its user number proven, or refuses with EACCES.
func (l loopbackProof) AttachAs(ctx context.Context, u p9srv.User, aname string) (p9.File, error) {
	peer, err := netip.ParseAddrPort(u.Peer)
	if err != nil {
		return nil, fmt.Errorf("peer %q: %w", u.Peer, syscall.EACCES)
	}
	uid, ok, err := l.owner(peer, l.own)
	if err != nil {
		return nil, fmt.Errorf("owner of %s: %w", peer, err)
	}
	if u.UID == p9srv.NoID && u.Name == "" {
		u.UID = uid
	}
	if !ok || uid != 0 && uid != u.UID {
		return nil, fmt.Errorf("user %d at %s, whose socket is user %d's: %w", u.UID, peer, uid, syscall.EACCES)
	}
	u.Proven = true
	return l.attacher.AttachAs(ctx, u, aname)
}

// Attach refuses: who attaches is not known.
func (l loopbackProof) Attach() (p9.File, error) { return nil, syscall.EACCES }

// ownUser stands before a tree that a user other than root serves: everybody
// would act as that user, so only that user and root may attach.
type ownUser struct{ attacher }

// AttachAs refuses with EACCES whom the transport has not proven to be the
// serving user or root.
func (o ownUser) AttachAs(ctx context.Context, u p9srv.User, aname string) (p9.File, error) {
	if !u.Proven || u.UID != 0 && int(u.UID) != os.Geteuid() {
		return nil, fmt.Errorf("user %d at %s: only the serving user may attach: %w", u.UID, u.Peer, syscall.EACCES)
	}
	return o.attacher.AttachAs(ctx, u, aname)
}

// Attach refuses: who attaches is not known.
func (o ownUser) Attach() (p9.File, error) { return nil, syscall.EACCES }
