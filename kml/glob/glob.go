package glob

import (
	"cmp"
	"fmt"
	"path"
	"strings"
)

// Glob is a pattern for paths. The zero value matches nothing.
type Glob struct {
	text  string
	parts []string
	base  bool
}

// Parse reads a pattern; an error tells of one that is not well formed.
func Parse(pattern string) (Glob, error) {
	g := Glob{text: pattern, parts: strings.Split(strings.TrimPrefix(pattern, "/"), "/"), base: !strings.Contains(pattern, "/")}
	for _, p := range g.parts {
		if _, err := path.Match(p, ""); err != nil || p == "" {
			return Glob{}, fmt.Errorf("%q is not a pattern", pattern)
		}
	}
	return g, nil
}

// String is the pattern.
func (g Glob) String() string { return g.text }

// Match says whether a path from the root, without a slash before it, matches.
func (g Glob) Match(name string) bool {
	if g.parts == nil {
		return false
	}
	if g.base {
		return matchPart(g.parts[0], path.Base(name))
	}
	names := strings.Split(name, "/")
	// can[j]: the patterns so far match the first j names.
	can := make([]bool, len(names)+1)
	can[0] = true
	for _, p := range g.parts {
		next := make([]bool, len(can))
		for j := range can {
			switch {
			case p == "**":
				next[j] = can[j] || j > 0 && next[j-1]
			case j > 0:
				next[j] = can[j-1] && matchPart(p, names[j-1])
			}
		}
		can = next
	}
	return can[len(names)]
}

func matchPart(pattern, name string) bool {
	ok, _ := path.Match(pattern, name) // the pattern was checked
	return ok
}

// Compare orders patterns, the most specific first: one that begins at the root
// before one for the last part; then by how many bytes stand for themselves,
// more first, a class half; then by how many folders are left open (**), fewer first; then by
// their text. It is 0 for the same pattern only.
func Compare(a, b Glob) int {
	if a.base != b.base {
		if b.base {
			return -1
		}
		return 1
	}
	al, ao := a.weight()
	bl, bo := b.weight()
	return cmp.Or(cmp.Compare(bl, al), cmp.Compare(ao, bo), cmp.Compare(a.text, b.text))
}

// weight counts the bytes that stand for themselves, doubly, with the classes, and
// the parts that are **.
func (g Glob) weight() (literal, open int) {
	for _, p := range g.parts {
		if p == "**" {
			open++
			continue
		}
		for i := 0; i < len(p); i++ {
			switch p[i] {
			case '*', '?':
			case '\\':
				i++
				literal += 2
			case '[':
				literal++
				for i++; i < len(p) && (p[i] != ']' || p[i-1] == '['); i++ {
					if p[i] == '\\' {
						i++
					}
				}
			default:
				literal += 2
			}
		}
	}
	return literal, open
}
