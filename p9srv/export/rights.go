package export

import (
	"context"
	"fmt"
	"syscall"

	"github.com/mezzofs/mezzo/kml/tree"
)

// Rights is what a user may do with the journal extension.
type Rights uint8

// The rights. Who may follow sees names and bytes regardless of modes.
const (
	RightRead   Rights = 1 << iota // status
	RightFollow                    // the log, the feed, snapshots, versions, clients
	RightWrite                     // enrol sites, send records, upload
	RightAdmin                     // tell the master what to do

	RightAll = RightRead | RightFollow | RightWrite | RightAdmin
)

// String names the highest right of r.
func (r Rights) String() string {
	switch {
	case r&RightAdmin != 0:
		return "admin"
	case r&RightWrite != 0:
		return "write"
	case r&RightFollow != 0:
		return "follow"
	case r&RightRead != 0:
		return "read"
	}
	return "none"
}

// Grant gives a user rights.
type Grant struct {
	UID    uint32
	Rights Rights
}

// rightsOf is what uid may on a fileset that the user server serves.
func rightsOf(uid, server uint32, access []Grant) Rights {
	if uid == server || uid == 0 {
		return RightAll
	}
	r := RightRead
	for _, g := range access {
		if g.UID == uid {
			r |= g.Rights
		}
	}
	return r
}

// identity is who calls: whom the 9P session has told, or whom the kernel has
// told a local front end.
func (j *Journal) identity(ctx context.Context, c *tree.Cred) Identity {
	if id, ok := IdentityOf(ctx); ok {
		return id
	}
	id := Identity{UID: j.uid, Proven: true, Peer: "local"}
	if c != nil {
		id.UID = c.UID
	}
	return id
}

// rights is what an identity may. A number that is only claimed gives none but
// to read.
func (j *Journal) rights(id Identity) Rights {
	if !id.Proven {
		return RightRead
	}
	return rightsOf(id.UID, j.uid, j.o.Access)
}

// may lets in who has the right that a file needs, and tells the log of who has
// not, with what would help.
func (j *Journal) may(ctx context.Context, c *tree.Cred, need Rights, file string) (Identity, error) {
	id := j.identity(ctx, c)
	if err := j.ctx.Err(); err != nil {
		return id, syscall.ESHUTDOWN
	}
	if id.ReadOnly && need&(RightWrite|RightAdmin) != 0 {
		return id, syscall.EROFS
	}
	if j.rights(id)&need != 0 {
		return id, nil
	}
	remedy := fmt.Sprintf("give user %d the right %q", id.UID, need)
	if !id.Proven {
		remedy = "connect over the unix socket, which proves who connects"
	}
	j.log.Info("access to the journal extension refused", "path", file, "need", need.String(),
		"uid", id.UID, "user", id.Name, "peer", id.Peer, "proven", id.Proven, "remedy", remedy)
	return id, fmt.Errorf("%s: needs the right %q: %w", file, need, syscall.EACCES)
}
