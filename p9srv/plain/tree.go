package plain

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/asuser"
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

// Options of a Tree. The zero value serves read-write, everybody as himself.
type Options struct {
	ReadOnly bool // every change is EROFS

	Squash               Squash
	SquashUID, SquashGID uint32 // both zero: Nobody

	// Devices allows clients to make device nodes and to open them. Without it
	// both are EPERM.
	Devices bool
}

// Tree is a directory as a 9P tree: a p9.Attacher and a p9srv.AttacherAs. Its
// methods may be called at any time.
type Tree struct {
	o      Options
	root   *node
	nodes  nodes
	procfd int       // /proc/self/fd
	lists  sync.Pool // of *[]byte, for folders being read
	euid   uint32

	mu    sync.Mutex
	users map[string]*user
}

// user is somebody attached. refs, of attachments, is guarded by Tree.mu.
type user struct {
	*asuser.User
	key  string
	refs int
}

// Open opens dir. Close the tree when all its sessions have ended.
func Open(dir string, o Options) (*Tree, error) {
	if o.SquashUID == 0 && o.SquashGID == 0 {
		o.SquashUID, o.SquashGID = Nobody, Nobody
	}
	t := &Tree{o: o, euid: uint32(os.Geteuid()), procfd: -1, users: map[string]*user{}}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	if t.procfd, err = unix.Open("/proc/self/fd", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("/proc/self/fd: %w", err)
	}
	var st unix.Statx_t
	if err := statFD(fd, &st); err != nil {
		unix.Close(fd)
		unix.Close(t.procfd)
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	unix.Umask(0)
	t.nodes.init()
	t.root, _ = t.nodes.adopt(fd, &st)
	return t, nil
}

// Close closes the directory. Every file has been closed before.
func (t *Tree) Close() error {
	t.root.release()
	t.nodes.close()
	return unix.Close(t.procfd)
}

// attachment is one attach: a user, and a root that ".." does not leave. It ends
// with its last File.
type attachment struct {
	t      *Tree
	as     *user // nil: the process itself
	uid    uint32
	gid    uint32
	groups []uint32
	root   *node // held
	files  atomic.Int64
}

// file is a File on n, which it takes over, as it does parent.
func (a *attachment) file(n, parent *node, name string) *File {
	a.files.Add(1)
	return &File{a: a, n: n, parent: parent, name: name, fd: -1}
}

// left gives up what a File had of the attachment.
func (a *attachment) left() {
	if a.files.Add(-1) > 0 {
		return
	}
	a.root.release()
	if a.as == nil {
		return
	}
	t := a.t
	t.mu.Lock()
	a.as.refs--
	last := a.as.refs == 0
	if last {
		delete(t.users, a.as.key)
	}
	t.mu.Unlock()
	if last {
		a.as.Close()
	}
}

// Attach serves an engine that does not say who attaches as the serving user.
func (t *Tree) Attach() (p9.File, error) {
	return t.attach(p9srv.User{UID: t.euid, GID: p9srv.NoID}, "")
}

// AttachAs attaches u to the folder or file aname, a path from the root. A user
// without a number is Nobody.
func (t *Tree) AttachAs(_ context.Context, u p9srv.User, aname string) (p9.File, error) {
	return t.attach(u, aname)
}

func (t *Tree) attach(u p9srv.User, aname string) (p9.File, error) {
	a := t.attachment(u)
	a.root = t.root
	t.root.hold()
	t.root.hold()
	f := a.file(t.root, nil, "")
	var names []string
	for name := range strings.SplitSeq(aname, "/") {
		if name != "" && name != "." {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return f, nil
	}
	_, g, err := f.WalkNames(nil, names)
	if err == nil {
		n := g.(*File).n
		n.hold()
		a.root.release()
		a.root = n
	}
	return g, errors.Join(err, f.Close())
}

// attachment finds out whom u's operations run as.
func (t *Tree) attachment(u p9srv.User) *attachment {
	a := &attachment{t: t, uid: u.UID, gid: u.GID, groups: u.Groups}
	if a.uid == p9srv.NoID {
		a.uid, a.gid, a.groups = Nobody, Nobody, nil
	}
	if t.euid != 0 {
		return a
	}
	if t.o.Squash == SquashAll || t.o.Squash == SquashRoot && a.uid == 0 {
		a.uid, a.gid, a.groups = t.o.SquashUID, t.o.SquashGID, nil
	}
	if a.uid == 0 {
		return a
	}
	if a.gid == p9srv.NoID {
		a.gid = Nobody
	}
	key := fmt.Sprint(a.uid, a.gid, a.groups)
	t.mu.Lock()
	defer t.mu.Unlock()
	if a.as = t.users[key]; a.as == nil {
		a.as = &user{User: asuser.New(a.uid, a.gid, slices.Clone(a.groups)), key: key}
		t.users[key] = a.as
	}
	a.as.refs++
	return a
}

// do runs what the kernel is to check as the user.
func (a *attachment) do(f func() error) error {
	if a.as == nil {
		return f()
	}
	return a.as.Do(f)
}

// group is whom something made for group gid is given to afterwards; false when
// it has the right group already. The client's kernel has chosen it; here it
// counts where the user is in that group.
func (a *attachment) group(gid p9.GID) (int, bool) {
	g := uint32(gid)
	switch {
	case gid == p9.NoGID || g == a.gid && a.as != nil:
		return 0, false
	case a.as == nil:
		return int(g), a.t.euid == 0 && a.uid == 0 && g != 0
	}
	return int(g), slices.Contains(a.groups, g)
}

func (a *attachment) writable() error {
	if a.t.o.ReadOnly {
		return syscall.EROFS
	}
	return nil
}
