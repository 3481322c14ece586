package conflicttest

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/conflict"
)

// user makes random operations at a client, and knows which contents nobody may
// miss: those that were written, and were not replaced or removed by somebody who
// had them before his eyes.
type user struct {
	rnd    *rand.Rand
	n      int
	wanted map[string]bool
}

func (u *user) path(c *Client) string {
	var paths []string
	for oid := range c.View.Objects {
		if oid != 1 {
			paths = append(paths, c.View.Path(oid))
		}
	}
	slices.Sort(paths)
	if len(paths) == 0 || u.rnd.IntN(4) == 0 {
		return u.fresh(c)
	}
	return paths[u.rnd.IntN(len(paths))]
}

// fresh is a path of few, in a folder there is.
func (u *user) fresh(c *Client) string {
	dirs := []string{""}
	for oid := range c.View.Objects {
		if oid != 1 && c.View.isDir(oid) {
			dirs = append(dirs, c.View.Path(oid)+"/")
		}
	}
	slices.Sort(dirs)
	return dirs[u.rnd.IntN(len(dirs))] + string(rune('a'+u.rnd.IntN(4)))
}

// act makes an operation, and says which, or nil when it could not be made.
func (u *user) act(c *Client) (Op, error) {
	u.n++
	data := "w" + strconv.Itoa(u.n) + "."
	kinds := []string{"create", "create", "mkdir", "symlink", "write", "write", "write", "unlink", "rmdir", "rename", "rename", "rename", "link", "chmod", "setxattr", "removexattr", "exchange"}
	op := Op{kinds[u.rnd.IntN(len(kinds))]}
	switch op[0] {
	case "create":
		op = append(op, u.fresh(c), data)
	case "mkdir":
		op = append(op, u.fresh(c))
	case "symlink":
		op = append(op, u.fresh(c), "to"+strconv.Itoa(u.rnd.IntN(3)))
	case "write":
		op = append(op, u.path(c), data)
	case "unlink", "rmdir":
		op = append(op, u.path(c))
	case "rename", "link", "exchange":
		op = append(op, u.path(c), u.path(c))
	case "chmod":
		op = append(op, u.path(c), strconv.FormatInt(int64(0o600+u.rnd.IntN(8)), 8))
	default:
		op = append(op, u.path(c), "user.x", strconv.Itoa(u.rnd.IntN(3)))
	}
	before, names := contents(c.View), maps.Clone(c.View.Names)
	if !possible(c, op) {
		return nil, nil
	}
	if err := c.Do(op); err != nil {
		if errors.Is(err, errStale) || errors.Is(err, syscall.EEXIST) || errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR) {
			return nil, nil // a user is told so
		}
		return nil, err
	}
	after := contents(c.View)
	for n, oid := range names {
		// Who removes one of several names may do so: the others are somebody else's.
		if o := c.View.Objects[oid]; c.View.Names[n] != oid && o != nil && op[0] != "exchange" && !moved(op, n, names) {
			delete(after, o.Data)
		}
	}
	for d := range before {
		if after[d] {
			continue
		}
		for w := range u.wanted { // by who had seen it, in what was joined too
			if strings.Contains(d, w) {
				delete(u.wanted, w)
			}
		}
	}
	for d := range after {
		if !before[d] {
			u.wanted[d] = true
		}
	}
	return op, nil
}

// moved reports whether an operation took a name from its object by moving it.
func moved(op Op, n Name, names map[Name]kml.OID) bool {
	at := Name{Parent: kml.RootOID}
	for part := range strings.SplitSeq(op[1], "/") {
		if at.Name != "" {
			at.Parent = names[at]
		}
		at.Name = part
	}
	return op[0] == "rename" && at == n
}

// possible is false for what a kernel stops before any tree hears of it.
func possible(c *Client, op Op) bool {
	oid, _, there := c.View.Find(op[1])
	switch op[0] {
	case "write":
		return there && c.View.Objects[oid].Attr.Mode&typeMask == typeFile
	case "link":
		_, _, taken := c.View.Find(op[2])
		return there && !c.View.isDir(oid) && !taken
	case "rename":
		if oid2, _, taken := c.View.Find(op[2]); taken && (c.View.isDir(oid) != c.View.isDir(oid2) || oid == oid2) {
			return false
		}
	case "exchange":
		oid2, _, taken := c.View.Find(op[2])
		return there && taken && oid != oid2
	case "unlink":
		return there && !c.View.isDir(oid)
	case "rmdir":
		return there && c.View.isDir(oid)
	case "chmod":
		return there && c.View.Objects[oid].Attr.Mode&typeMask != typeLink
	case "removexattr":
		if there {
			_, has := c.View.Objects[oid].Xattrs["user.x"]
			return has
		}
	}
	return true
}

func contents(t *Tree) map[string]bool {
	m := map[string]bool{}
	for _, o := range t.Objects {
		if o.Data != "" {
			m[o.Data] = true
		}
	}
	return m
}

// history is a random history of some hosts.
type history struct {
	m  *Master
	cs []*Client
	u  *user
	// only settles no more than what is concerned.
	only bool
	log  []string
}

func newHistory(rnd *rand.Rand, hosts int, only bool, policy conflict.Policy) *history {
	h := &history{m: NewMaster(), u: &user{rnd: rnd, wanted: map[string]bool{}}, only: only}
	for i := range hosts {
		c := h.m.NewClient(fmt.Sprintf("host%d", i+1), kml.SiteID(i+1))
		c.Policy = func(conflict.Name) conflict.Policy { return policy }
		c.Merge = func(_ *conflict.Merge, base, ours, theirs string) (string, bool) {
			return ours + theirs, rnd.IntN(2) == 0
		}
		h.cs = append(h.cs, c)
	}
	return h
}

func (h *history) sync(i int) error {
	h.log = append(h.log, fmt.Sprintf("%s: sync", h.cs[i].name))
	c := h.cs[i]
	settle := c.Settle
	if h.only {
		settle = c.SettleOnly
	}
	if err := settle(); err != nil {
		return err
	}
	for _, k := range c.Local {
		h.log = append(h.log, fmt.Sprintf("\t%s %s", kml.AppendText(nil, k.Rec), k.Data))
	}
	return c.Send()
}

// play makes steps, and heals. An error is a fault.
func (h *history) play(steps int) error {
	rnd := h.u.rnd
	for range steps {
		i := rnd.IntN(len(h.cs))
		if rnd.IntN(12) == 0 {
			if err := h.sync(i); err != nil {
				return err
			}
			continue
		}
		op, err := h.u.act(h.cs[i])
		if err != nil {
			return err
		}
		if op != nil {
			h.log = append(h.log, fmt.Sprintf("%s: %s", h.cs[i].name, op))
		}
	}
	for range 2 {
		for i := range h.cs {
			if err := h.sync(i); err != nil {
				return err
			}
		}
	}
	return h.check()
}

// check holds all trees against the master's, and what was written against what
// there is.
func (h *history) check() error {
	there := contents(h.m.Tree)
	for _, c := range h.cs {
		if got, want := c.View.String(), h.m.Tree.String(); got != want {
			return fmt.Errorf("at %s:\n\t%s\nat the master:\n\t%s", c.name, got, want)
		}
		for _, k := range c.Kept {
			there[k] = true
		}
	}
	for d := range h.u.wanted {
		found := there[d]
		for k := range there {
			found = found || h.cs[0].Merge != nil && strings.Contains(k, d) // joined
		}
		if !found {
			return fmt.Errorf("%s is lost", d)
		}
	}
	return nil
}

// TestRandom plays random histories of three hosts under every policy.
func TestRandom(t *testing.T) {
	rnd := testutil.Rand(t)
	rounds := 120
	if testutil.Long() {
		rounds = 20000
	}
	rows := map[conflict.Row]int{}
	for k := conflict.Both; k <= conflict.Exec; k++ {
		for range rounds {
			seed := rnd.Uint64()
			for _, only := range []bool{false, true} {
				h := newHistory(rand.New(rand.NewPCG(seed, 0)), 3, only, conflict.Policy{Kind: k, Program: "join"})
				if err := h.play(60); err != nil {
					t.Fatalf("policy %d, only what is concerned: %v: %v\n%s", k, only, err, strings.Join(h.log, "\n"))
				}
				for _, c := range h.cs {
					for r, n := range c.Rows {
						rows[r] += n
					}
				}
			}
		}
	}
	for r := conflict.RowNone; r <= conflict.RowXattr; r++ {
		if rows[r] == 0 && r != conflict.RowCycle { // seldom: TestCycle
			t.Errorf("no verdict of row %s", r)
		}
	}
}
