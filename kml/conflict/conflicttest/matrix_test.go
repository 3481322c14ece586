package conflicttest

import (
	"strings"
	"testing"

	"github.com/mezzofs/mezzo/internal/testutil"
)

// The operations of the matrix, and what each is at a place. N is the number of
// the host.
var (
	operations = []string{"create", "mkdir", "symlink", "link", "unlink", "rmdir", "rename source", "rename target", "store", "setattr", "setxattr"}
	// n is a name that nothing has; f a file; d an empty folder; p a folder with a
	// file in it; = is both doing the very same.
	places    = []string{"n", "f", "d", "p", "="}
	templates = map[string]map[string]string{
		"create":        {"n": "create n newN", "f": "unlink f; create f newN", "d": "create d/xN newN", "p": "create p/xN newN", "=": "create n new"},
		"mkdir":         {"n": "mkdir n; create n/xN newN", "f": "unlink f; mkdir f", "d": "mkdir d/xN", "p": "mkdir p/xN", "=": "mkdir n"},
		"symlink":       {"n": "symlink n toN", "f": "unlink f; symlink f toN", "d": "symlink d/xN toN", "p": "symlink p/xN toN", "=": "symlink n to"},
		"link":          {"n": "link f n", "f": "link f lN", "d": "link k d/xN", "p": "link p/q lN", "=": "link f n"},
		"unlink":        {"n": "create n newN; unlink n", "f": "unlink f", "p": "unlink p/q", "=": "unlink f"},
		"rmdir":         {"d": "rmdir d", "p": "unlink p/q; rmdir p", "=": "rmdir d"},
		"rename source": {"f": "rename f gN", "d": "rename d gN", "p": "rename p/q gN", "=": "rename f g"},
		"rename target": {"n": "create t newN; rename t n", "f": "create t newN; rename t f", "d": "rename k d/xN", "p": "rename k p/xN", "=": "rename k n"},
		"store":         {"f": "write f newN", "p": "write p/q newN", "=": "write f new"},
		"setattr":       {"f": "chmod f 60N", "d": "chmod d 70N", "p": "chmod p/q 60N", "=": "chmod f 600"},
		"setxattr":      {"f": "setxattr f user.x vN", "d": "setxattr d user.x vN", "p": "setxattr p/q user.x vN", "=": "setxattr f user.x v"},
	}
)

const header = `# What must happen when two hosts change the same thing while they are apart:
# every operation against every other. Both begin with
#
#	f=0 k=kkk d/ p/ p/q=1
#
# The row is what host one does, which reaches the master first; the column is
# what host two does. @n is about a name that was free, @f about the file f, @d
# about the empty folder d, @p about the folder p and the file in it; @= is both
# doing the very same. Then comes the tree as it is everywhere in the end, and what
# host two keeps in conflicts.
#
# PATH=CONTENTS is a file, PATH/ a folder, PATH->TARGET a symbolic link, PATH==OTHER
# one more name of a file. Go test -update writes the results anew.

`

// generate makes every cell, without its result.
func generate() (cs []Cell) {
	for _, row := range operations {
		for _, col := range operations {
			for _, place := range places {
				one, two := templates[row][place], templates[col][place]
				if one == "" || two == "" || place == "=" && row != col || place == "p" && row != "rmdir" && col != "rmdir" {
					continue
				}
				cs = append(cs, Cell{Row: row, Column: col, Place: place,
					One: parseOps(strings.ReplaceAll(one, "N", "1")), Two: parseOps(strings.ReplaceAll(two, "N", "2"))})
			}
		}
	}
	return cs
}

// TestMatrix holds the table against what the clients in memory come to.
func TestMatrix(t *testing.T) {
	var b strings.Builder
	b.WriteString(header)
	row := ""
	pairs := map[[2]string]bool{}
	for _, c := range generate() {
		if c.Row != row {
			row = c.Row
			b.WriteString("# " + row + " came first\n")
		}
		pairs[[2]string{c.Row, c.Column}] = true
		for _, only := range []bool{false, true} {
			m := NewModel()
			m.Only = only
			was := c.Tree
			// The cell does not know its result yet: only faults count.
			err := Run(m, c)
			tree, kept, terr := m.Tree(2)
			if terr != nil || err != nil && !strings.Contains(err.Error(), "must be") {
				t.Errorf("%s: %v, %v", c, err, terr)
				continue
			}
			if c.Tree, c.Kept = tree, kept; only && was != tree {
				t.Errorf("%s:\nwith only what is concerned it was\n\t%s", c, was)
			}
			if lost := m.Lost(written(c)); len(lost) > 0 {
				t.Errorf("%s: lost %q", c, lost)
			}
		}
		b.WriteString(c.String() + "\n")
	}
	testutil.Golden(t, "matrix.txt", []byte(b.String()))
	for _, row := range operations {
		for _, col := range operations {
			if !pairs[[2]string{row, col}] {
				t.Errorf("%s x %s has no cell", row, col)
			}
		}
	}
}

// written is the contents that were written and not removed again by who wrote
// them.
func written(c Cell) (data []string) {
	for _, os := range [][]Op{c.One, c.Two} {
		last := ""
		for _, o := range os {
			switch {
			case o[0] == "create" && len(o) == 3 || o[0] == "write":
				last = o[2]
			case o[0] == "unlink":
				last = ""
			}
		}
		if last != "" {
			data = append(data, last)
		}
	}
	return data
}

// TestTable reads the table back and runs it as any World would.
func TestTable(t *testing.T) {
	cs, err := Cells()
	if err != nil {
		t.Fatal(err)
	}
	if len(cs) < 121 {
		t.Errorf("%d cells", len(cs))
	}
	for _, c := range cs {
		if err := Run(NewModel(), c); err != nil {
			t.Errorf("%s x %s @%s: %v", c.Row, c.Column, c.Place, err)
		}
	}
	c := cs[0]
	c.Tree += "x"
	if Run(NewModel(), c) == nil {
		t.Error("a wrong result passes")
	}
}
