package replay

import (
	"fmt"
	"path"
	"strings"
)

// Glob is a pattern for paths. Without a slash it is matched with the last part
// of a path; else with the whole path from the root, part by part, as path.Match
// does, where a part ** stands for any number of folders, none included.
type Glob struct {
	parts []string
	base  bool
}

// ParseGlob reads a pattern; an error tells of one that is not well formed.
func ParseGlob(pattern string) (Glob, error) {
	g := Glob{parts: strings.Split(strings.TrimPrefix(pattern, "/"), "/"), base: !strings.Contains(pattern, "/")}
	for _, p := range g.parts {
		if _, err := path.Match(p, ""); err != nil || p == "" {
			return Glob{}, fmt.Errorf("%q is not a pattern", pattern)
		}
	}
	return g, nil
}

// Match says whether a path from the root, without a slash before it, matches.
func (g Glob) Match(name string) bool {
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
