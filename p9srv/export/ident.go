package export

import (
	"context"
	"slices"

	"github.com/mezzofs/mezzo/kml/tree"
	"github.com/mezzofs/mezzo/p9srv"
)

// Identity is who uses a front end, before any squashing: what rights to the
// journal extension go by.
type Identity struct {
	UID     uint32
	Name    string // uname of the attach, may be empty
	Peer    string // address of the other end
	Proven  bool   // the transport proved UID
	Session uint64 // number of the attach

	ReadOnly bool // the front end takes no changes
}

type identityKey struct{}

// WithIdentity tells what is done under ctx who does it.
func WithIdentity(ctx context.Context, id Identity) context.Context {
	return context.WithValue(ctx, identityKey{}, id)
}

// IdentityOf is the identity of ctx; ok is false on a local front end, where
// the kernel has said who calls.
func IdentityOf(ctx context.Context) (id Identity, ok bool) {
	id, ok = ctx.Value(identityKey{}).(Identity)
	return id, ok
}

// identify keeps of an attaching user what rights go by.
func (e *Export) identify(u p9srv.User) Identity {
	return Identity{UID: u.UID, Name: u.Name, Peer: u.Peer, Proven: u.Proven || e.o.TrustClaims}
}

// credOf is what u's calls run as. A server that is not root cannot be anybody
// else and serves as itself.
func (e *Export) credOf(u p9srv.User) *tree.Cred {
	if e.uid != 0 {
		return nil
	}
	if e.o.Squash == SquashAll || e.o.Squash == SquashRoot && u.UID == 0 {
		return &tree.Cred{UID: e.o.SquashUID, GID: e.o.SquashGID}
	}
	if u.UID == 0 {
		return nil
	}
	gid := u.GID
	if gid == p9srv.NoID {
		gid = Nobody
	}
	return &tree.Cred{UID: u.UID, GID: gid, Groups: u.Groups}
}

// withGroup is the credentials under which something is made for group gid, as
// a create message asks. The client's kernel has chosen it (the process's
// file-system group); here it counts where the user is in that group, or where
// nothing says what groups the user is in.
func (s *session) withGroup(gid uint32) *tree.Cred {
	c := s.cred
	switch {
	case gid == p9srv.NoID || s.squashed():
		return c
	case c == nil && (s.e.uid != 0 || gid == 0):
		return nil
	case c == nil:
		return &tree.Cred{GID: gid}
	case gid == c.GID || c.GID != Nobody && !slices.Contains(c.Groups, gid):
		return c
	}
	cc := *c
	cc.GID = gid
	return &cc
}

// squashed reports whether s runs as somebody else than who attached.
func (s *session) squashed() bool { return s.cred != nil && s.cred.UID != s.who.UID }
