package cachefs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// TestManyClients has clients and somebody at the master work on a few names at
// random while links are cut and held up, the master is stopped and started, and
// clients are closed and opened again. Then all heals: every tree is the same,
// every number was applied once, and contents that were flushed anywhere are at
// the master, in a conflict copy, or were written over by who had seen them.
func TestManyClients(t *testing.T) {
	rounds, steps := 50, 40
	if testing.Short() {
		rounds = 5
	}
	if testutil.Long() {
		rounds, steps = 100, 400
	}
	rng := testutil.Rand(t)
	for i := range rounds {
		seed := rng.Uint64()
		t.Run(fmt.Sprintf("%d-%x", i, seed), func(t *testing.T) { newCrowd(t, seed, 2+i%2, i%3 > 0).run(steps) })
	}
}

// crowd is a master and clients that work at random.
type crowd struct {
	t    *testing.T
	rng  *rand.Rand
	m    *testMaster
	all  []*member
	down bool
	asIs bool
	n    int
	said []string
	// flushed are the contents that somebody was told are kept, and by whom.
	flushed map[string]string
}

type member struct {
	c     *Client
	p     *proxy
	o     Options
	alone bool
}

// newCrowd: with asIs everything that is flushed is sent, also what is written
// over or removed before.
func newCrowd(t *testing.T, seed uint64, clients int, asIs bool) *crowd {
	g := &crowd{t: t, asIs: asIs, rng: rand.New(rand.NewPCG(seed, 0)), m: newMaster(t), flushed: map[string]string{}}
	for range clients {
		x := &member{p: newProxy(t, g.m.sock)}
		x.o = optionsOf(t.TempDir(), x.p.addr)
		x.o.asIs = asIs
		g.open(x)
		g.all = append(g.all, x)
	}
	return g
}

func (g *crowd) say(format string, args ...any) {
	g.said = append(g.said, fmt.Sprintf(format, args...))
}

func (g *crowd) run(steps int) {
	t := g.t
	defer func() {
		if t.Failed() {
			t.Log("what was done:\n" + strings.Join(g.said[max(0, len(g.said)-400):], "\n"))
		}
	}()
	for range steps {
		x := g.all[g.rng.IntN(len(g.all))]
		switch n := g.rng.IntN(100); {
		case n < 4:
			g.partition(x)
		case n == 4:
			g.reopen(x)
		case n == 5:
			g.restart()
		case n < 16 && !g.down:
			g.act("master", g.m.tree)
		default:
			g.act(fmt.Sprintf("client %d", g.index(x)), x.c)
		}
	}
	g.heal()
}

func (g *crowd) index(x *member) int {
	for i, y := range g.all {
		if x == y {
			return i
		}
	}
	return -1
}

func (g *crowd) partition(x *member) {
	x.alone = !x.alone
	g.say("client %d alone: %v", g.index(x), x.alone)
	if !x.alone {
		x.p.open()
		return
	}
	x.p.cut(true)
	must(g.t, x.c.WaitState(ctxOf(g.t), func(s State) bool { return s == Disconnected }))
}

// reopen ends a client, with what it has not sent, and opens it again.
func (g *crowd) reopen(x *member) {
	g.say("client %d reopened", g.index(x))
	ctx, cancel := context.WithCancel(g.t.Context())
	cancel() // nothing is sent before
	must(g.t, x.c.Close(ctx))
	g.open(x)
}

func (g *crowd) open(x *member) {
	c, err := clientWith(g.t, x.o)
	must(g.t, err)
	x.c = c
}

func (g *crowd) restart() {
	if g.down = !g.down; g.down {
		g.say("master stops")
		g.m.stop()
		return
	}
	g.say("master starts")
	g.m.start()
}

// heal brings everything together and checks it.
func (g *crowd) heal() {
	t := g.t
	if g.down {
		g.restart()
	}
	trees := []tree.FS{g.m.tree}
	for _, x := range g.all {
		x.p.open()
		trees = append(trees, x.c)
	}
	for range 3 { // what one settles another may have to settle again
		for i, x := range g.all {
			ctx := ctxOf(t)
			must(t, x.c.WaitState(ctx, func(s State) bool { return s == Connected }))
			if err := x.c.Sync(ctx); err != nil {
				t.Fatalf("client %d: %v\n%v\n%s", i, err, x.c.Status(), x.c.localText())
			}
		}
	}
	once(t, g.m)
	equal(t, trees...)
	for i, x := range g.all {
		if s := x.c.Status(); s.Unsent != 0 || s.OpenDirty != 0 {
			t.Errorf("client %d: %v", i, s)
		}
	}
	if g.asIs {
		g.kept()
	}
}

// kept looks for everything that was flushed.
func (g *crowd) kept() {
	t := g.t
	there := map[string]bool{}
	r, err := g.m.tree.Log().ReaderAfter(0)
	must(t, err)
	defer r.Close()
	for {
		rec, err := r.TryNext()
		if err != nil {
			break
		}
		there[string(rec.Digest)] = true
	}
	for _, x := range g.all {
		aside, err := filepath.Glob(x.c.cache.State().Path("conflicts", "*"))
		must(t, err)
		for _, path := range aside {
			b, err := os.ReadFile(path)
			must(t, err)
			sum := blake3.Sum256(b)
			there[string(sum[:])] = true
		}
	}
	for text, who := range g.flushed {
		if sum := blake3.Sum256([]byte(text)); who != "master" && !there[string(sum[:])] {
			t.Errorf("%s had %q flushed, and it is nowhere", who, text)
		}
	}
}

// place is a folder, and a name in it.
func (g *crowd) place(ctx context.Context, fs tree.FS) (kml.OID, string, string) {
	names := []string{"a", "b", "c", "d"}
	name := func() string { return names[g.rng.IntN(len(names))] }
	oid, path := kml.RootOID, ""
	for range g.rng.IntN(3) {
		n := name()
		a, err := fs.Lookup(ctx, nil, oid, n)
		if err != nil || a.Mode&unix.S_IFMT != unix.S_IFDIR {
			break
		}
		oid, path = a.OID, path+n+"/"
	}
	n := name()
	return oid, n, path + n
}

// act does something at random through fs.
func (g *crowd) act(who string, fs tree.FS) {
	ctx := ctxOf(g.t)
	dir, name, path := g.place(ctx, fs)
	dir2, name2, path2 := g.place(ctx, fs)
	oid := func() kml.OID {
		a, err := fs.Lookup(ctx, nil, dir, name)
		if err != nil {
			return 0
		}
		return a.OID
	}
	g.n++
	var what string
	var err error
	switch g.rng.IntN(20) {
	case 0, 1, 2, 3, 4, 5:
		what, err = "write "+path, g.write(ctx, who, fs, dir, name, os.O_RDWR)
	case 6:
		what, err = "create "+path, g.write(ctx, who, fs, dir, name, os.O_RDWR|os.O_EXCL)
	case 7, 8:
		what = "mkdir " + path
		_, err = fs.Mkdir(ctx, nil, dir, name, 0o755)
	case 9:
		what, err = "rmdir "+path, fs.Rmdir(ctx, nil, dir, name)
	case 10, 11:
		what, err = "unlink "+path, fs.Unlink(ctx, nil, dir, name)
	case 12, 13, 14:
		what, err = "rename "+path+" to "+path2, fs.Rename(ctx, nil, dir, name, dir2, name2, 0)
	case 15:
		what, err = "exchange "+path+" and "+path2, fs.Rename(ctx, nil, dir, name, dir2, name2, unix.RENAME_EXCHANGE)
	case 16:
		what = "link " + path + " as " + path2
		_, err = fs.Link(ctx, nil, oid(), dir2, name2)
	case 17:
		what = "symlink " + path
		_, err = fs.Symlink(ctx, nil, dir, name, fmt.Sprint("to ", g.n))
	case 18:
		what = "setattr " + path
		_, err = fs.Setattr(ctx, nil, oid(), nil, tree.SetAttr{Mask: tree.SetMode | tree.SetMtime, Mode: 0o600 | uint32(g.rng.IntN(0o100)), Mtime: int64(1e18) + int64(g.n)})
	case 19:
		what, err = "setxattr "+path, fs.Setxattr(ctx, nil, oid(), "user.a", fmt.Append(nil, g.n), 0)
	}
	g.say("%d %s: %s: %v", g.n, who, what, err)
	var errno syscall.Errno
	if err != nil && (!errors.As(err, &errno) || errno == syscall.EIO) {
		g.t.Fatalf("%s: %s: %v", who, what, err)
	}
}

// write replaces the contents of a file.
func (g *crowd) write(ctx context.Context, who string, fs tree.FS, dir kml.OID, name string, flags int) error {
	text := fmt.Sprintf("%s %d", who, g.n)
	if a, err := fs.Lookup(ctx, nil, dir, name); err == nil && a.Mode&unix.S_IFMT != unix.S_IFREG {
		return syscall.EEXIST
	}
	a, h, err := fs.Create(ctx, nil, dir, name, flags, 0o644)
	if err != nil {
		return err
	}
	// Of what one host writes over what it wrote itself, the last may be all that a
	// conflict leaves.
	if old, err := readOID(ctx, fs, a.OID); err == nil && g.flushed[old] == who {
		delete(g.flushed, old)
	}
	if _, err := fs.Setattr(ctx, nil, a.OID, h, tree.SetAttr{Mask: tree.SetSize}); err != nil {
		return errors.Join(err, h.Close())
	}
	_, err = h.WriteAt(ctx, []byte(text), 0)
	if err := errors.Join(err, h.Close()); err != nil {
		return err
	}
	g.flushed[text] = who
	return nil
}
