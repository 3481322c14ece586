package conflict

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/mezzofs/mezzo/kml/glob"
)

// Kind is how conflicts are settled.
type Kind uint8

// The kinds.
const (
	Both   Kind = iota // both versions stay in the tree, the local one as a conflict copy
	Master             // the master's stands, the local one is kept in conflicts
	Client             // the local one stands, the master's is kept in conflicts
	Newest             // the one with the later modification time; Both while clocks differ by more than 5 s
	Append             // two files to which was only appended are joined; else Both
	Manual             // the master's stands, the local one waits for a person
	Exec               // a program that this host's own configuration names joins them; else Both
)

// Policy is how conflicts are settled under a path. The zero value is both.
type Policy struct {
	Kind    Kind
	Program string // of Exec
}

// ErrPolicy is text that is no policy, or a pattern that cannot be.
var ErrPolicy = errors.New("not a policy")

const maxProgram = 64

// String is the policy as ParsePolicy reads it.
func (p Policy) String() string {
	names := [...]string{"both", "master", "client", "newest", "append", "manual"}
	if p.Kind == Exec {
		return "exec:" + p.Program
	}
	if int(p.Kind) < len(names) {
		return names[p.Kind]
	}
	return "?"
}

// ParsePolicy reads both, master, client, newest, append, manual or exec:NAME.
func ParsePolicy(s string) (Policy, error) {
	if name, ok := strings.CutPrefix(s, "exec:"); ok {
		if !isWord(name) {
			return Policy{}, fmt.Errorf("exec:%q: a program's name has 1 to %d letters, digits, '-', '_' and '.': %w", cutAt(name, maxProgram), maxProgram, ErrPolicy)
		}
		return Policy{Exec, name}, nil
	}
	for k := Both; k < Exec; k++ {
		if p := (Policy{Kind: k}); p.String() == s {
			return p, nil
		}
	}
	return Policy{}, fmt.Errorf("%q: say both, master, client, newest, append, manual or exec:NAME: %w", cutAt(s, maxProgram), ErrPolicy)
}

func isWord(s string) bool {
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.') {
			return false
		}
	}
	return s != "" && len(s) <= maxProgram && s[0] != '-' && s[0] != '.'
}

// Rule is the policy of the paths that a pattern matches.
type Rule struct {
	Glob   glob.Glob
	Policy Policy
}

// Policies are the rules of a fileset, the most specific pattern first (see
// glob.Compare). The zero value says both of everything.
type Policies struct{ rules []Rule }

// maxRules and maxPattern bound a text, so that it fits into one record.
const (
	maxRules   = 1000
	maxPattern = 1024
	maxText    = 64 << 10
)

// ParsePolicies reads the text form: a line "PATTERN POLICY" for each rule. A
// pattern with spaces is quoted as a Go string. Empty lines and what follows a #
// at the beginning of a line are skipped. An error names the line.
func ParsePolicies(text []byte) (Policies, error) {
	var p Policies
	if len(text) > maxText {
		return p, fmt.Errorf("%d bytes, over %d: %w", len(text), maxText, ErrPolicy)
	}
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		r, err := parseRule(line)
		if err == nil {
			err = p.add(r)
		}
		if err != nil {
			return Policies{}, fmt.Errorf("line %d: %w", i+1, err)
		}
	}
	return p, nil
}

func parseRule(line string) (r Rule, err error) {
	pattern, rest, _ := strings.Cut(line, " ")
	if line[0] == '"' {
		q, err := strconv.QuotedPrefix(line)
		if err == nil {
			pattern, err = strconv.Unquote(q)
		}
		if err != nil {
			return r, fmt.Errorf("a quote that does not end: %w", ErrPolicy)
		}
		rest = line[len(q):]
	} else if i := strings.IndexAny(line, " \t"); i >= 0 {
		pattern, rest = line[:i], line[i:]
	}
	return NewRule(pattern, strings.TrimSpace(rest))
}

// NewRule is the rule of a pattern and the name of a policy.
func NewRule(pattern, policy string) (r Rule, err error) {
	if len(pattern) > maxPattern || strings.ContainsAny(pattern, "\x00\n") {
		return r, fmt.Errorf("a pattern of %d bytes: %w", len(pattern), ErrPolicy)
	}
	if r.Glob, err = glob.Parse(pattern); err != nil {
		return r, fmt.Errorf("%w: %w", err, ErrPolicy)
	}
	r.Policy, err = ParsePolicy(policy)
	return r, err
}

func (p *Policies) add(r Rule) error {
	i, found := slices.BinarySearchFunc(p.rules, r, compareRules)
	if found {
		return fmt.Errorf("%q comes twice: %w", r.Glob, ErrPolicy)
	}
	if len(p.rules) == maxRules {
		return fmt.Errorf("over %d rules: %w", maxRules, ErrPolicy)
	}
	p.rules = slices.Insert(p.rules, i, r)
	return nil
}

func compareRules(a, b Rule) int { return glob.Compare(a.Glob, b.Glob) }

// With is p with one rule more, or another policy for a pattern it has.
func (p Policies) With(r Rule) (Policies, error) {
	n := p.Without(r.Glob.String())
	return n, n.add(r)
}

// Without is p without the rule of a pattern.
func (p Policies) Without(pattern string) Policies {
	n := Policies{slices.Clone(p.rules)}
	n.rules = slices.DeleteFunc(n.rules, func(r Rule) bool { return r.Glob.String() == pattern })
	return n
}

// Rules are the rules, the most specific pattern first.
func (p Policies) Rules() []Rule { return slices.Clone(p.rules) }

// For is the policy of a path from the root, without a slash before it.
func (p Policies) For(path string) Policy {
	for _, r := range p.rules {
		if r.Glob.Match(path) {
			return r.Policy
		}
	}
	return Policy{}
}

// Text is the text form, as ParsePolicies reads it.
func (p Policies) Text() []byte {
	var b bytes.Buffer
	for _, r := range p.rules {
		s := r.Glob.String()
		if q := strconv.Quote(s); strings.ContainsAny(s, " \t#\"") || len(q) != len(s)+2 {
			s = q
		}
		fmt.Fprintf(&b, "%s %s\n", s, r.Policy)
	}
	return b.Bytes()
}
