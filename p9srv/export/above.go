package export

import (
	"context"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml/tree"
)

// Above opens files of the journal extension at the master that a replica
// follows, as a user: what the clients of a replica write is the master's to
// decide. EHOSTDOWN when the master cannot be reached. The methods may be called
// at the same time.
type Above interface {
	// OpenAbove opens the file of these names, or with create makes it.
	OpenAbove(ctx context.Context, uid uint32, create bool, flags int, names ...string) (tree.ExtHandle, error)
}

// above opens a stream of a client's at the master for a replica: the session is
// the master's, and its bytes go through.
func (j *Journal) above(file string) func(context.Context, *tree.Cred, int) (tree.ExtHandle, error) {
	return func(ctx context.Context, c *tree.Cred, flags int) (tree.ExtHandle, error) {
		id, err := j.may(ctx, c, RightWrite, file)
		if err != nil {
			return nil, err
		}
		h, err := j.o.Above.OpenAbove(ctx, id.UID, false, flags, file)
		if err != nil {
			return nil, err
		}
		return &aboveHandle{ExtHandle: h, j: j, client: j.clients.open(id, modeWrite, j.o.Now())}, nil
	}
}

// aboveHandle is a session at the master, counted among the replica's clients.
type aboveHandle struct {
	tree.ExtHandle
	j      *Journal
	client *client
}

// WriteAt passes frames on.
func (h *aboveHandle) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	h.client.seen(h.j.o.Now())
	return h.ExtHandle.WriteAt(ctx, p, off)
}

// Close ends the session.
func (h *aboveHandle) Close() error {
	h.j.clients.close(h.client, modeWrite, h.j.o.Now())
	return h.ExtHandle.Close()
}

// stageAbove is the stage of the master, as a replica shows it: uploads are made
// there, and not listed.
type stageAbove struct{ j *Journal }

func (d stageAbove) open(ctx context.Context, c *tree.Cred, create bool, name string, flags int) (tree.ExtHandle, error) {
	id, err := d.j.may(ctx, c, RightWrite, "stage")
	if err != nil {
		return nil, err
	}
	if _, ok := parseUpload(name); !ok {
		return nil, syscall.EINVAL
	}
	return d.j.o.Above.OpenAbove(ctx, id.UID, create, flags, "stage", name)
}

func (d stageAbove) node(u upload) tree.ExtNode {
	return tree.ExtNode{
		Name: u.name(), ID: idUploads | hashID(uint64(u.site)<<44^u.seq), Mode: unix.S_IFREG | 0o666,
		Size: func(context.Context) (uint64, error) { return 0, nil },
		Open: func(ctx context.Context, c *tree.Cred, flags int) (tree.ExtHandle, error) {
			return d.open(ctx, c, false, u.name(), flags)
		},
	}
}

// Lookup finds any name that an upload may have: the master knows which are there.
func (d stageAbove) Lookup(_ context.Context, _ *tree.Cred, name string) (tree.ExtNode, error) {
	u, ok := parseUpload(name)
	if !ok {
		return tree.ExtNode{}, syscall.ENOENT
	}
	return d.node(u), nil
}

// List lists nothing.
func (d stageAbove) List(context.Context, *tree.Cred) ([]tree.ExtNode, error) { return nil, nil }

// Create begins an upload at the master.
func (d stageAbove) Create(ctx context.Context, c *tree.Cred, name string, flags int) (tree.ExtNode, tree.ExtHandle, error) {
	h, err := d.open(ctx, c, true, name, flags)
	if err != nil {
		return tree.ExtNode{}, nil, err
	}
	u, _ := parseUpload(name)
	return d.node(u), h, nil
}

// Remove is refused: the master removes what it has decided on.
func (d stageAbove) Remove(context.Context, *tree.Cred, string) error { return syscall.EPERM }
