package conflict_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mezzofs/mezzo/kml/conflict"
	"github.com/mezzofs/mezzo/kml/conflict/conflicttest"
)

func ops(t *testing.T, c *conflicttest.Client, text string) {
	t.Helper()
	for _, s := range strings.Split(text, ";") {
		if f := strings.Fields(s); len(f) > 0 {
			if err := c.Do(f); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// both runs two hosts: a setup, what each does apart, and what comes of it.
func both(t *testing.T, policy, setup, one, two string) (*conflicttest.Model, string, string) {
	t.Helper()
	m := conflicttest.NewModel()
	p, err := conflict.ParsePolicy(policy)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range m.Clients {
		c.Policy = func(conflict.Name) conflict.Policy { return p }
		c.Merge = func(g *conflict.Merge, base, ours, theirs string) (string, bool) {
			if g.Policy.Program == "fails" {
				return "", false
			}
			if g.Policy.Kind == conflict.Append {
				a, ok1 := strings.CutPrefix(ours, base)
				_, ok2 := strings.CutPrefix(theirs, base)
				return theirs + a, ok1 && ok2
			}
			return fmt.Sprintf("<%s|%s|%s>", base, ours, theirs), true
		}
	}
	ops(t, m.Clients[0], setup)
	if err := m.Heal(); err != nil {
		t.Fatal(err)
	}
	ops(t, m.Clients[0], one)
	ops(t, m.Clients[1], two)
	if err := m.Heal(); err != nil {
		t.Fatal(err)
	}
	tree, kept, err := m.Tree(2)
	if err != nil {
		t.Fatal(err)
	}
	return m, tree, kept
}

const copied = `"f (conflict, two, TIME)"=`

func TestPoliciesSettle(t *testing.T) {
	const setup = "create f 0"
	for _, c := range []struct{ policy, one, two, tree, kept string }{
		// two stores
		{"both", "write f 1", "write f 2", "f=1 " + copied + "2", ""},
		{"master", "write f 1", "write f 2", "f=1", "2"},
		{"client", "write f 1", "write f 2", "f=2", "1"},
		{"newest", "write f 1", "write f 2", "f=2", "1"},
		{"append", "append f 1", "append f 2", "f=012", ""},
		{"append", "write f x", "append f 2", "f=x " + copied + "02", ""},
		{"manual", "write f 1", "write f 2", "f=1", "2"},
		{"exec:join", "write f 1", "write f 2", `f="<0|2|1>"`, ""},
		{"exec:fails", "write f 1", "write f 2", "f=1 " + copied + "2", ""},
		// many stores are one
		{"both", "write f 1", "write f 2; write f 3; write f 4", "f=1 " + copied + "4", ""},
		{"master", "write f 1", "write f 2; write f 3", "f=1", "3"},
		{"append", "append f 1; append f 1", "append f 2; append f 2; append f 2", "f=011222", ""},
		{"exec:join", "write f 1", "write f 2; write f 3", `f="<0|3|1>"`, ""},
		{"both", "write f 1", "write f 2; write f 1", "f=1", ""},
		// an editor's save
		{"both", "create t 1; rename t f", "create t 2; rename t f", "f=1 " + copied + "2", ""},
		{"both", "create t 1; rename t f", "create t 2; rename t f; create t 3; rename t f; create t 4; rename t f", "f=1 " + copied + "4", ""},
		{"both", "create t 1; rename t f", "create t 1; rename t f", "f=1", ""},
		{"both", "write f 1", "write f 2; create t 3; rename t f", "f=1 " + copied + "3", ""},
		{"master", "create t 1; rename t f", "create t 2; rename t f", "f=1", "2"},
		{"client", "create t 1; rename t f", "create t 2; rename t f", "f=2", "1"},
		{"newest", "create t 1; rename t f", "create t 2; rename t f", "f=2", "1"},
		{"manual", "create t 1; rename t f", "create t 2; rename t f", "f=1", "2"},
		{"append", "create t 01; rename t f", "create t 02; rename t f", "f=012", ""},
		{"exec:join", "create t 1; rename t f", "create t 2; rename t f", `f="<0|2|1>"`, ""},
		{"exec:join", "create t 1; rename t f", "create t 2; rename t f; write f 3", `f="<0|3|1>"`, ""},
		{"exec:fails", "create t 1; rename t f", "create t 2; rename t f", "f=1 " + copied + "2", ""},
		// files made on both sides
		{"master", "create n 1", "create n 2", "f=0 n=1", "2"},
		{"client", "create n 1", "create n 2", "f=0 n=2", "1"},
		{"append", "create n 1", "create n 2", "f=0 n=12", ""},
		{"exec:join", "create n 1", "create n 2", `f=0 n="<|2|1>"`, ""},
		{"master", "symlink n 1", "symlink n 2", "f=0 n->1", "target=2"},
		{"client", "symlink n 1", "symlink n 2", "f=0 n->2", "target=1"},
		// removed on one side
		{"master", "write f 1", "unlink f", "f=1", ""},
		{"client", "write f 1", "unlink f", "", "1"},
		{"newest", "write f 1", "unlink f", "", "1"},
		{"master", "unlink f", "write f 2", "", "2"},
		{"manual", "unlink f", "write f 2", "", "2"},
		{"client", "unlink f", "write f 2", "f=2", ""},
		// attributes
		{"client", "chmod f 601", "chmod f 602", "f=0[mode=602]", "mode=601"},
		{"newest", "setxattr f user.x 1", "setxattr f user.x 2", "f=0[user.x=2]", "user.x=1"},
		{"manual", "chmod f 601", "chmod f 602", "f=0[mode=601]", "mode=602"},
	} {
		_, tree, kept := both(t, c.policy, setup, c.one, c.two)
		if tree != c.tree || kept != c.kept {
			t.Errorf("%s: one: %s / two: %s: %s, kept %q; must be %s, kept %q", c.policy, c.one, c.two, tree, kept, c.tree, c.kept)
		}
	}
}

// TestNames is about folders, moves, swaps and chains.
func TestNames(t *testing.T) {
	for _, c := range []struct{ what, setup, one, two, tree string }{
		{"a folder made on both sides, deep", "",
			"mkdir a; mkdir a/b; create a/b/x 1; create a/same s", "mkdir a; mkdir a/b; create a/b/x 2; create a/b/y 2; create a/same s",
			`a/ a/b/ a/b/x=1 "a/b/x (conflict, two, TIME)"=2 a/b/y=2 a/same=s`},
		{"each into the other", "mkdir a; mkdir b", "rename a b/a", "rename b a/b", "b/ b/a/"},
		{"each deep into the other", "mkdir a; mkdir a/x; mkdir b; mkdir b/y", "rename a b/y/a", "rename b a/x/b", "b/ b/y/ b/y/a/ b/y/a/x/"},
		{"the same swap", "create a 1; create b 2", "exchange a b", "exchange a b", "a=2 b=1"},
		{"a swap by three renames, and a store", "create a 1; create b 2", "write a 3", "rename a t; rename b a; rename t b", "a=2 b=3"},
		{"a swap of what one side moved", "create a 1; create b 2", "rename b c", "exchange a b", "b=1 c=2"},
		{"a swap of what one side moved, the other way", "create a 1; create b 2", "rename a c", "exchange a b", "a=2 c=1"},
		{"a chain", "create a 1", "write a 2", "rename a b; rename b c; rename c d", "d=2"},
		{"chains on both sides", "create a 1", "rename a x; rename x y", "rename a b; rename b c", "y=1"},
		{"everything on by one", "create a 1; create b 2; create c 3", "write a 4", "rename c d; rename b c; rename a b", "b=4 c=2 d=3"},
		{"two rings", "create a 1; create b 2; create c 3", "rename c t; rename b c; rename a b; rename t a", "rename a t; rename b a; rename c b; rename t c", "a=3 b=1 c=2"},
		{"a tree removed under a change", "mkdir d; mkdir d/e; create d/e/f 1; create d/g 2", "unlink d/e/f; rmdir d/e; unlink d/g; rmdir d", "write d/e/f 9", "d/ d/e/ d/e/f=9"},
		{"a tree removed, and its name taken", "mkdir d; create d/f 1", "unlink d/f; rmdir d; create d 7", "write d/f 9", `d=7 "d (conflict, two, TIME)"/ "d (conflict, two, TIME)/f"=9`},
		{"a tree removed, and another made", "mkdir d; create d/f 1", "unlink d/f; rmdir d; mkdir d; create d/f 7", "write d/f 9", `d/ d/f=7 "d/f (conflict, two, TIME)"=9`},
		{"moved here, gone there, then written", "mkdir d; create f 1", "unlink f", "rename f d/g; chmod d/g 600; write d/g 2", "d/ d/g=2[mode=600]"},
		{"renamed with its folder", "mkdir d; create d/f 1", "rename d e", "rename d/f d/g; write d/g 2", "e/ e/g=2"},
		{"a link to what is gone", "create f 1; create g 2", "unlink f", "link f l; unlink f", "g=2 l=1"},
		{"a scratch file", "", "create lock 1", "create lock 2; unlink lock", "lock=1"},
		{"a scratch folder", "", "mkdir tmp; create tmp/x 1", "mkdir tmp; create tmp/y 2; unlink tmp/y; rmdir tmp", "tmp/ tmp/x=1"},
		{"a local object, renamed after the conflict", "", "create a 1", "create a 2; rename a b; create a 3", `a=1 "a (conflict, two, TIME)"=3 b=2`},
		{"a folder over one that was filled", "mkdir d; mkdir e", "create e/x 1", "rename d e", `e/ e/x=1 "e (conflict, two, TIME)"/`},
	} {
		m, tree, _ := both(t, "both", c.setup, c.one, c.two)
		if tree != c.tree {
			t.Errorf("%s: %s, must be %s", c.what, tree, c.tree)
		}
		if strings.HasPrefix(c.what, "each") && m.Clients[1].Rows[conflict.RowCycle] == 0 {
			t.Errorf("%s: %v", c.what, m.Clients[1].Rows)
		}
	}
}

// TestThousandAppends is two hosts that append to one file, apart most of the time.
func TestThousandAppends(t *testing.T) {
	m := conflicttest.NewModel()
	one, two := m.Clients[0], m.Clients[1]
	ops(t, one, "create log x")
	if err := m.Heal(); err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		ops(t, one, "append log a")
		ops(t, two, "append log b")
		if i%3 == 0 {
			if err := m.Heal(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := m.Heal(); err != nil {
		t.Fatal(err)
	}
	tree, _, err := m.Tree(2)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(tree, "="); n > 2 {
		t.Errorf("%d files", n)
	}
}

// TestClocks is newest while the clocks cannot be trusted: as both.
func TestClocks(t *testing.T) {
	for _, c := range []struct {
		skew  time.Duration
		known bool
		want  int
	}{{0, true, 0}, {-5 * time.Second, true, 0}, {5*time.Second + 1, true, 1}, {-6 * time.Second, true, 1}, {0, false, 1}} {
		m := conflicttest.NewModel()
		for _, k := range m.Clients {
			k.Skew, k.SkewUnknown = c.skew, !c.known
			k.Policy = func(conflict.Name) conflict.Policy { return conflict.Policy{Kind: conflict.Newest} }
		}
		ops(t, m.Clients[0], "create f 0")
		if err := m.Heal(); err != nil {
			t.Fatal(err)
		}
		ops(t, m.Clients[0], "write f 1")
		ops(t, m.Clients[1], "write f 2")
		if err := m.Heal(); err != nil {
			t.Fatal(err)
		}
		if got := strings.Count(m.Master.Tree.String(), "(conflict"); got != c.want {
			t.Errorf("%v, known %v: %d copies, must be %d", c.skew, c.known, got, c.want)
		}
	}
}

// TestOpenCopy is a second conflict about a file whose conflict copy is still
// there: its bytes go to the copy, and what the user did to the copy meanwhile does
// not take them away.
func TestOpenCopy(t *testing.T) {
	for _, does := range []string{"write f 4", "write f 4; unlink COPY", "write f 4; rename f COPY", "write f 4; write k 5; rename k COPY"} {
		m, tree, _ := both(t, "both", "create f 0; create k k", "write f 1", "write f 2")
		two := m.Clients[1]
		name := ""
		for n := range two.View.Names {
			if conflict.IsCopy(n.Name) {
				name = n.Name
			}
		}
		if name == "" {
			t.Fatal(tree)
		}
		ops(t, m.Clients[0], "write f 3")
		for _, s := range strings.Split(does, ";") {
			f := strings.Fields(s)
			for i := range f {
				f[i] = strings.ReplaceAll(f[i], "COPY", name)
			}
			if err := two.Do(f); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.Heal(); err != nil {
			t.Fatal(err)
		}
		tree, kept, err := m.Tree(2)
		if err != nil || !strings.Contains(tree, "f=3") || !strings.Contains(tree, `"=4`) || kept != "2" {
			t.Errorf("%s: %s, kept %q, %v", does, tree, kept, err)
		}
	}
}
