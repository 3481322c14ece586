package export

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
	"github.com/mezzofs/mezzo/p9srv"
)

// Squash says which users are served as somebody else.
type Squash uint8

// The ways to squash.
const (
	SquashNone Squash = iota // everybody as himself
	SquashRoot               // user 0 as SquashUID, SquashGID
	SquashAll                // everybody as SquashUID, SquashGID
)

// Nobody is the user and group that stands for nobody in particular.
const Nobody = 65534

// Options says how a tree is served. The zero value serves it read-write,
// everybody as himself, without a journal extension.
type Options struct {
	Ext  tree.Ext  // shown as .mezzo in the root; nil: none
	Door tree.Door // marks changes that come through here

	// InPlace promises that no call of the FS but Fsync and a waiting SetLock
	// waits for anything else than the page cache and now and then the disk, so
	// that the engine need not hand operations to another goroutine; changes of an
	// FS that is a tree.Waiter, and waits, are handed over all the same. True for
	// a Tree, false for a cache that may have to ask its master.
	InPlace bool

	ReadOnly bool // every change is EROFS

	Squash               Squash
	SquashUID, SquashGID uint32 // both zero: Nobody

	// TrustClaims takes a user number for proven that the transport only
	// carries: for a transport that is itself the proof, or when told to
	// (--insecure).
	TrustClaims bool

	Logger *slog.Logger // nil: slog.Default()
}

// Export is an FS as a 9P tree. It is a p9.Attacher and a p9srv.AttacherAs;
// its methods may be called at the same time.
type Export struct {
	fs       tree.FS
	o        Options
	log      *slog.Logger
	uid, gid uint32 // who serves
	started  int64
	waits    bool // changes wait until they are durable
	sessions atomic.Uint64
	owners   ownerHash
}

// New makes a 9P tree of fs. It owns nothing: closing fs is the caller's, after
// the last session has ended.
func New(fs tree.FS, o Options) *Export {
	if o.SquashUID == 0 && o.SquashGID == 0 {
		o.SquashUID, o.SquashGID = Nobody, Nobody
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	w, ok := fs.(tree.Waiter)
	return &Export{
		fs: fs, o: o, waits: ok && w.Waits(), log: o.Logger, owners: newOwnerHash(), started: time.Now().UnixNano(),
		uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()),
	}
}

// session is one attach: a user, and where the user's root is.
type session struct {
	e    *Export
	id   uint64
	who  Identity
	cred *tree.Cred      // nil: the process itself
	ctx  context.Context // carries the door and the identity; never ends
	root kml.OID         // what ".." does not leave
}

// Attach serves an engine that does not say who attaches: as the serving user
// (or the squashed one), whose number nothing proves.
func (e *Export) Attach() (p9.File, error) {
	// Its engine has no context to give.
	ctx := context.Background()
	return e.attach(ctx, Identity{UID: e.uid}, e.credOf(p9srv.User{UID: e.uid}), "")
}

// AttachAs attaches u to the folder (or file) aname, a path from the root;
// "" and "/" are the root itself. Errors are those of walking there as u. A
// user without a number is Nobody.
// ctx ends with the call.
func (e *Export) AttachAs(ctx context.Context, u p9srv.User, aname string) (p9.File, error) {
	if u.UID == p9srv.NoID {
		u.UID, u.Proven = Nobody, false
	}
	return e.attach(ctx, e.identify(u), e.credOf(u), aname)
}

func (e *Export) attach(ctx context.Context, who Identity, c *tree.Cred, aname string) (p9.File, error) {
	s := &session{e: e, id: e.sessions.Add(1), who: who, cred: c, root: kml.RootOID}
	who.Session, who.ReadOnly = s.id, e.o.ReadOnly
	// The session's operations that come without a context of their own end when
	// the disk does.
	s.ctx = WithIdentity(tree.WithDoor(context.Background(), e.o.Door), who)
	here := s.request(ctx)
	a, err := e.fs.Getattr(here, nil, kml.RootOID)
	if err != nil {
		return nil, errno(err)
	}
	var names []string
	for name := range strings.SplitSeq(aname, "/") {
		if name != "" && name != "." {
			names = append(names, name)
		}
	}
	root := s.file(a, kml.RootOID, "")
	if len(names) == 0 {
		return root, nil
	}
	_, f, err := (&File{n: root.n, ctx: here}).Walk(names)
	if err != nil {
		return nil, errno(err)
	}
	if g, ok := f.(*File); ok && g.n.isDir() {
		s.root = g.n.oid
	}
	return f, nil
}

// request is the context of one operation: ctx's end, the session's values.
func (s *session) request(ctx context.Context) context.Context {
	return requestContext{Context: ctx, values: s.ctx}
}

// requestContext ends with one context and carries the values of another.
type requestContext struct {
	context.Context
	values context.Context
}

func (c requestContext) Value(key any) any {
	if v := c.values.Value(key); v != nil {
		return v
	}
	return c.Context.Value(key)
}

// writable is EROFS on an export that takes no changes.
func (s *session) writable() error {
	if s.e.o.ReadOnly {
		return syscall.EROFS
	}
	return nil
}

// errno makes the end of a context the EINTR a waiting call answers.
func errno(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return syscall.EINTR
	}
	return err
}
