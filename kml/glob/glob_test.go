package glob

import (
	"slices"
	"testing"
)

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"*.txt", "a/b/c.txt", true},
		{"*.txt", "a.txt/b", false},
		{"a/*", "a/b", true},
		{"/a/*", "a/b", true},
		{"a/*", "a/b/c", false},
		{"a/**", "a/b/c", true},
		{"a/**", "a", true},
		{"a/**", "ab", false},
		{"**/c", "c", true},
		{"**/c", "a/b/c", true},
		{"a/**/d", "a/d", true},
		{"a/**/d", "a/b/c/d", true},
		{"a/**/d", "a/b/c/e", false},
		{"/a", "a", true},
		{"/a", "b/a", false},
		{"[ab]/?", "b/x", true},
		{"**/**/**/**/x", "a/a/a/a/a/a/a/a/y", false},
	} {
		g, err := Parse(c.pattern)
		if err != nil {
			t.Fatal(err)
		}
		if got := g.Match(c.name); got != c.want {
			t.Errorf("%s with %s: %v", c.pattern, c.name, got)
		}
	}
	for _, bad := range []string{"[", "a//b", "", "a/[-]"} {
		if _, err := Parse(bad); err == nil {
			t.Errorf("%q passes", bad)
		}
	}
}

func TestCompare(t *testing.T) {
	var gs []Glob
	want := []string{"/docs/notes/plan.md", "/docs/**/*.md", "/docs/*", "/docs/**", "**/x", "/*", "plan.md", "*.md", "[abcdef]*", "*", "?"}
	for _, s := range want {
		g, err := Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		gs = append(gs, g)
	}
	slices.Reverse(gs)
	slices.SortFunc(gs, Compare)
	var got []string
	for _, g := range gs {
		got = append(got, g.String())
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for i, a := range gs {
		for j, b := range gs {
			if c := Compare(a, b); (c < 0) != (i < j) || (c == 0) != (i == j) {
				t.Errorf("%s with %s: %d", a, b, c)
			}
		}
	}
	if (Glob{}).Match("a") {
		t.Error("no pattern matches")
	}
}
