package conflict

import (
	"errors"
	"strings"
	"testing"
)

func TestPolicies(t *testing.T) {
	text := `
# how conflicts are settled
*            newest
*.log        append
/src/**      exec:git-merge
/src/gen/**  client
"/a b/#1"    manual
`
	p, err := ParsePolicies([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"x": "newest", "a/b/c": "newest", "var/x.log": "append", "src/a.c": "exec:git-merge", "src/x/a.log": "exec:git-merge",
		"src/gen/a.c": "client", "a b/#1": "manual", "src": "exec:git-merge",
	} {
		if got := p.For(path).String(); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	again, err := ParsePolicies(p.Text())
	if err != nil || string(again.Text()) != string(p.Text()) {
		t.Errorf("%v, %q, then %q", err, p.Text(), again.Text())
	}
	r, err := NewRule("*.log", "both")
	if err != nil {
		t.Fatal(err)
	}
	q, err := p.With(r)
	if err != nil || q.For("a.log") != (Policy{}) || p.For("a.log").Kind != Append || len(q.Rules()) != len(p.Rules()) {
		t.Errorf("%v: %q", err, q.Text())
	}
	if q = q.Without("*.log"); q.For("a.log").Kind != Newest {
		t.Errorf("%q", q.Text())
	}
	if (Policies{}).For("a") != (Policy{}) {
		t.Error("no rules are not both")
	}
}

func TestPoliciesBad(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"*.txt", "line 1"},
		{"\n*.txt wins", "line 2"},
		{"* both\n* master", "comes twice"},
		{"[ both", "not a pattern"},
		{"a//b both", "not a pattern"},
		{`"a both`, "quote"},
		{"* exec:", "program"},
		{"* exec:../sh", "program"},
		{"* exec:a b", "program"},
		{"* both # why", "say both"},
		{strings.Repeat("x", maxPattern+1) + " both", "pattern of"},
		{strings.Repeat("#\n", maxText), "bytes"},
	} {
		if _, err := ParsePolicies([]byte(c.text)); !errors.Is(err, ErrPolicy) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.40q: %v, want %s", c.text, err, c.want)
		}
	}
}

func FuzzPolicies(f *testing.F) {
	f.Add([]byte("*.log append\n\"a b\" exec:git\n# x\n"))
	f.Add([]byte("\"\\x00\" both"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := ParsePolicies(text)
		if err != nil {
			return
		}
		q, err := ParsePolicies(p.Text())
		if err != nil || string(q.Text()) != string(p.Text()) {
			t.Errorf("%q gives %q, then %v", text, p.Text(), err)
		}
	})
}
