package cachefs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/conflict/conflicttest"
	"github.com/mezzofs/mezzo/kml/tree"
)

// twoHosts is a master and two clients, each behind a link that can be cut.
type twoHosts struct {
	t  *testing.T
	m  *testMaster
	c  [2]*Client
	p  [2]*proxy
	at string // the folder that operations are in, with a slash behind it
}

func newTwoHosts(t *testing.T, asIs bool) *twoHosts {
	w := &twoHosts{t: t, m: newMaster(t)}
	for i, host := range []string{"one", "two"} {
		w.p[i] = newProxy(t, w.m.sock)
		o := optionsOf(t.TempDir(), w.p[i].addr)
		o.Host, o.asIs = host, asIs
		c, err := clientWith(t, o)
		must(t, err)
		w.c[i] = c
	}
	return w
}

// Part is conflicttest.World's.
func (w *twoHosts) Part() error {
	for i, c := range w.c {
		w.p[i].cut(true)
		if err := c.WaitState(ctxOf(w.t), func(s State) bool { return s == Disconnected }); err != nil {
			return err
		}
	}
	return nil
}

// Heal is conflicttest.World's.
func (w *twoHosts) Heal() error {
	ctx := ctxOf(w.t)
	for _, i := range []int{0, 1, 0} {
		w.p[i].open()
		if err := w.c[i].WaitState(ctx, func(s State) bool { return s == Connected }); err != nil {
			return err
		}
		if err := w.c[i].Sync(ctx); err != nil {
			return fmt.Errorf("%w\n%v\n%s", err, w.c[i].Status(), w.c[i].localText())
		}
	}
	return nil
}

// find is the folder and the name of a path, and what it holds.
func (w *twoHosts) find(ctx context.Context, fs tree.FS, path string) (dir kml.OID, name string, a tree.Attr, err error) {
	dir = kml.RootOID
	parts := strings.Split(w.at+path, "/")
	for _, p := range parts[:len(parts)-1] {
		if a, err = fs.Lookup(ctx, nil, dir, p); err != nil {
			return 0, "", a, err
		}
		dir = a.OID
	}
	name = parts[len(parts)-1]
	a, err = fs.Lookup(ctx, nil, dir, name)
	return dir, name, a, err
}

// Do is conflicttest.World's. Host 0 is the master.
func (w *twoHosts) Do(host int, op conflicttest.Op) error {
	ctx, fs := ctxOf(w.t), tree.FS(w.m.tree)
	if host > 0 {
		fs = w.c[host-1]
	}
	dir, name, a, err := w.find(ctx, fs, op[1])
	if err != nil && (!errors.Is(err, unix.ENOENT) || dir == 0) {
		return err
	}
	write := func(text string) error {
		_, h, err := fs.Create(ctx, nil, dir, name, os.O_WRONLY|os.O_TRUNC, 0o644)
		if err == nil && text != "" {
			_, err = h.WriteAt(ctx, []byte(text), 0)
		}
		if err == nil {
			err = h.Close()
		}
		return err
	}
	switch op[0] {
	case "create", "write":
		text := ""
		if len(op) > 2 {
			text = op[2]
		}
		return write(text)
	case "append":
		h, err := fs.Open(ctx, nil, a.OID, os.O_WRONLY|os.O_APPEND)
		if err != nil {
			return err
		}
		_, err = h.WriteAt(ctx, []byte(op[2]), 0)
		return errors.Join(err, h.Close())
	case "mkdir":
		_, err = fs.Mkdir(ctx, nil, dir, name, 0o755)
		return err
	case "symlink":
		_, err = fs.Symlink(ctx, nil, dir, name, op[2])
		return err
	case "unlink":
		return fs.Unlink(ctx, nil, dir, name)
	case "rmdir":
		return fs.Rmdir(ctx, nil, dir, name)
	case "chmod":
		mode, err := strconv.ParseUint(op[2], 8, 12)
		must(w.t, err)
		_, err = fs.Setattr(ctx, nil, a.OID, nil, tree.SetAttr{Mask: tree.SetMode, Mode: uint32(mode)})
		return err
	case "setxattr":
		return fs.Setxattr(ctx, nil, a.OID, op[2], []byte(op[3]), 0)
	case "removexattr":
		return fs.Removexattr(ctx, nil, a.OID, op[2])
	}
	dir2, name2, _, err := w.find(ctx, fs, op[2])
	if dir2 == 0 {
		return err
	}
	switch op[0] {
	case "link":
		_, err = fs.Link(ctx, nil, a.OID, dir2, name2)
		return err
	case "rename":
		return fs.Rename(ctx, nil, dir, name, dir2, name2, 0)
	case "exchange":
		return fs.Rename(ctx, nil, dir, name, dir2, name2, unix.RENAME_EXCHANGE)
	}
	return fmt.Errorf("%v: %w", op, unix.EINVAL)
}

// Tree is conflicttest.World's.
func (w *twoHosts) Tree(host int) (text, kept string, err error) {
	c := w.c[host-1]
	ctx := ctxOf(w.t)
	_, _, a, err := w.find(ctx, c, ".")
	if err != nil && w.at != "" {
		var dir kml.OID
		if dir, _, _, err = w.find(ctx, c, "x"); dir == 0 {
			return "", "", err
		}
		a.OID = dir
	} else if w.at == "" {
		a.OID = kml.RootOID
	}
	text, err = show(ctx, c, a.OID)
	if err != nil {
		return "", "", err
	}
	var ks []string
	for _, k := range c.conflicts.List() {
		if !strings.HasPrefix(k.Path, w.at) {
			continue
		}
		switch {
		case k.Field != "" && k.Side == "ours":
			ks = append(ks, k.Field+"="+string(k.Mine))
		case k.Field != "" && k.Side == "theirs":
			ks = append(ks, k.Field+"="+string(k.Their))
		case k.Bytes:
			b, err := os.ReadFile(c.conflicts.BytesPath(k.ID))
			if err != nil {
				return "", "", err
			}
			ks = append(ks, string(b))
		}
	}
	slices.Sort(ks)
	return text, strings.Join(ks, " "), nil
}

// show is a folder as the table of conflicts has it.
func show(ctx context.Context, fs tree.FS, top kml.OID) (string, error) {
	var lines []string
	first := map[kml.OID]string{}
	var walk func(dir kml.OID, prefix string) error
	walk = func(dir kml.OID, prefix string) error {
		ns, err := names(ctx, fs, dir)
		if err != nil {
			return err
		}
		for _, n := range ns {
			a, err := fs.Lookup(ctx, nil, dir, n)
			if err != nil {
				return err
			}
			path := prefix + n
			if f, ok := first[a.OID]; ok {
				lines = append(lines, conflicttest.Entry{Path: path, Same: f}.String())
				continue
			}
			first[a.OID] = path
			e := conflicttest.Entry{Path: path, Mode: a.Mode, Xattrs: map[string]string{}}
			xs, err := fs.Listxattr(ctx, nil, a.OID)
			if err != nil {
				return err
			}
			for _, x := range xs {
				v, err := fs.Getxattr(ctx, nil, a.OID, x)
				if err != nil {
					return err
				}
				e.Xattrs[x] = string(v)
			}
			switch a.Mode & unix.S_IFMT {
			case unix.S_IFREG:
				e.Data, err = readOID(ctx, fs, a.OID)
			case unix.S_IFLNK:
				e.Data, err = fs.Readlink(ctx, nil, a.OID)
			}
			if err != nil {
				return err
			}
			lines = append(lines, e.String())
			if a.Mode&unix.S_IFMT == unix.S_IFDIR {
				if err := walk(a.OID, path+"/"); err != nil {
					return err
				}
			}
		}
		return nil
	}
	err := walk(top, "")
	return strings.Join(lines, " "), err
}

// TestConflictMatrix holds every cell of the table of conflicts against two real
// clients, all cells at once, each in a folder of its own. With -long each has its
// own parting of the hosts.
func TestConflictMatrix(t *testing.T) {
	cells, err := conflicttest.Cells()
	must(t, err)
	for _, asIs := range []bool{false, true} {
		t.Run(fmt.Sprintf("as is %v", asIs), func(t *testing.T) {
			w := newTwoHosts(t, asIs)
			if testutil.Long() {
				for i, c := range cells {
					w.in(i)
					if err := conflicttest.Run(w, c); err != nil {
						t.Errorf("%s x %s @%s: %v", c.Row, c.Column, c.Place, err)
					}
				}
				return
			}
			w.together(cells)
			equal(t, w.m.tree, w.c[0], w.c[1])
			once(t, w.m)
		})
	}
}

// in goes to the folder of a cell, and makes it.
func (w *twoHosts) in(i int) {
	w.at = ""
	must(w.t, w.Do(0, conflicttest.Op{"mkdir", fmt.Sprint(i)}))
	w.at = fmt.Sprint(i, "/")
}

// together runs cells in one parting of the hosts.
func (w *twoHosts) together(cells []conflicttest.Cell) {
	t := w.t
	for i := range cells {
		w.in(i)
		for _, op := range conflicttest.Setup() {
			must(t, w.Do(0, op))
		}
	}
	w.at = ""
	must(t, w.Heal())
	for i := range cells { // nothing is a hole
		w.at = fmt.Sprint(i, "/")
		for host := 1; host <= 2; host++ {
			_, _, err := w.Tree(host)
			must(t, err)
		}
	}
	must(t, w.Part())
	for i, c := range cells {
		w.at = fmt.Sprint(i, "/")
		for host, ops := range [][]conflicttest.Op{c.One, c.Two} {
			for _, op := range ops {
				if err := w.Do(host+1, op); err != nil {
					t.Fatalf("%s x %s @%s: at %d: %v: %v", c.Row, c.Column, c.Place, host+1, op, err)
				}
			}
		}
	}
	must(t, w.Heal())
	for i, c := range cells {
		w.at = fmt.Sprint(i, "/")
		for host := 1; host <= 2; host++ {
			got, kept, err := w.Tree(host)
			must(t, err)
			if got != c.Tree || host == 2 && kept != c.Kept {
				t.Errorf("%s x %s @%s (%d): at %d\n\t%s\n\t%s\nis\n\t%s | kept: %s\nmust be\n\t%s | kept: %s", c.Row, c.Column, c.Place, i, host,
					fmt.Sprint(c.One), fmt.Sprint(c.Two), got, kept, c.Tree, c.Kept)
			}
		}
	}
}
