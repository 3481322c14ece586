package conflicttest

import (
	_ "embed" // of the table
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

//go:embed testdata/matrix.txt
var matrix string

// Entry is one path of a tree, for the table.
type Entry struct {
	Path   string
	Same   string // another path of the same object, when there was one before
	Mode   uint32
	Data   string // of a file, or a link's target
	Xattrs map[string]string
}

// The modes that are not shown.
const (
	plainFile = 0o644
	plainDir  = 0o755
)

// stampIn finds the time in a conflict name.
var stampIn = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d\.\d\d\.\d\d`)

// String is the entry as the table has it:
//
//	PATH=DATA             a file, PATH/ a folder, PATH->TARGET a link, PATH==FIRST a further name
//	... [mode 600] [x=v]  when they are not the usual
//
// Paths with spaces are quoted. The time in a conflict name is TIME.
func (e Entry) String() string {
	word := func(s string) string {
		s = stampIn.ReplaceAllString(s, "TIME")
		if q := strconv.Quote(s); strings.ContainsAny(s, " =|;") || len(q) != len(s)+2 {
			return q
		}
		return s
	}
	if e.Same != "" {
		return word(e.Path) + "==" + word(e.Same)
	}
	s, usual := word(e.Path)+"="+word(e.Data), uint32(plainFile)
	switch e.Mode & typeMask {
	case typeDir:
		s, usual = word(e.Path)+"/", plainDir
	case typeLink:
		s, usual = word(e.Path)+"->"+word(e.Data), e.Mode&0o7777
	}
	if m := e.Mode & 0o7777; m != usual {
		s += fmt.Sprintf("[mode=%o]", m)
	}
	var xs []string
	for k, v := range e.Xattrs {
		xs = append(xs, fmt.Sprintf("[%s=%s]", k, v))
	}
	slices.Sort(xs)
	return s + strings.Join(xs, "")
}

// Op is an operation of a user:
//
//	create PATH DATA   a new file; empty without DATA
//	write PATH DATA    new contents
//	append PATH DATA
//	mkdir PATH         symlink PATH TARGET        link OLD NEW
//	unlink PATH        rmdir PATH                 rename OLD NEW (replaces)
//	exchange A B       chmod PATH MODE            setxattr PATH NAME VALUE
//	removexattr PATH NAME
type Op []string

// String is the operation in words.
func (o Op) String() string { return strings.Join(o, " ") }

// Cell is a line of the table.
type Cell struct {
	Row, Column, Place string
	One, Two           []Op
	Tree               string // what the tree is in the end, as Tree.String says it
	Kept               string // what is in conflicts, at two
}

// String is the cell as a line of the table.
func (c Cell) String() string {
	s := fmt.Sprintf("%-34s | one: %s | two: %s | %s", c.Row+" x "+c.Column+" @"+c.Place, ops(c.One), ops(c.Two), c.Tree)
	if c.Kept != "" {
		s += " | kept: " + c.Kept
	}
	return s
}

func ops(os []Op) string {
	var s []string
	for _, o := range os {
		s = append(s, o.String())
	}
	return strings.Join(s, "; ")
}

// Setup makes the tree that every cell begins with.
func Setup() []Op {
	return parseOps("create f 0; create k kkk; mkdir d; mkdir p; create p/q 1")
}

func parseOps(s string) (os []Op) {
	for _, o := range strings.Split(s, ";") {
		os = append(os, strings.Fields(o))
	}
	return os
}

// Cells is the table.
func Cells() ([]Cell, error) { return parseCells(matrix) }

func parseCells(text string) ([]Cell, error) {
	var cs []Cell
	for i, line := range strings.Split(text, "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.Split(line, " | ")
		if len(f) < 4 || len(f) > 5 {
			return nil, fmt.Errorf("line %d: %d parts", i+1, len(f))
		}
		var c Cell
		var ok1, ok2, ok3 bool
		c.Row, c.Column, ok1 = strings.Cut(strings.TrimSpace(f[0]), " x ")
		c.Column, c.Place, ok2 = strings.Cut(c.Column, " @")
		one, ok3 := strings.CutPrefix(f[1], "one: ")
		two, ok4 := strings.CutPrefix(f[2], "two: ")
		if !ok1 || !ok2 || !ok3 || !ok4 {
			return nil, fmt.Errorf("line %d: not a cell", i+1)
		}
		c.One, c.Two, c.Tree = parseOps(one), parseOps(two), f[3]
		if len(f) == 5 {
			c.Kept = strings.TrimPrefix(f[4], "kept: ")
		}
		cs = append(cs, c)
	}
	return cs, nil
}
