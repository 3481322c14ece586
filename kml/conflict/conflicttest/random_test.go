package conflicttest

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/conflict"
)

// history is a random history of some hosts.
type history struct {
	m  *Master
	cs []*Client
	u  *User
	// only settles no more than what is concerned.
	only bool
	log  []string
}

func newHistory(rnd *rand.Rand, hosts int, only bool, policy conflict.Policy) *history {
	h := &history{m: NewMaster(), u: &User{Rand: rnd, Wanted: map[string]bool{}}, only: only}
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
	rnd := h.u.Rand
	for range steps {
		i := rnd.IntN(len(h.cs))
		if rnd.IntN(12) == 0 {
			if err := h.sync(i); err != nil {
				return err
			}
			continue
		}
		op, err := h.u.Act(h.cs[i])
		if err != nil {
			return err
		}
		if op != nil {
			h.log = append(h.log, fmt.Sprintf("%s: %s", h.cs[i].name, op))
		}
	}
	return h.heal()
}

// heal syncs everybody, and checks.
func (h *history) heal() error {
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
	for d := range h.u.Wanted {
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

// TestElsewhere plays histories in which what this host made at a name becomes an
// object of the master's that this host has under another name, and then replaces
// there: what was written at the first name stays.
func TestElsewhere(t *testing.T) {
	for _, steps := range []string{
		"2 mkdir c; 1 mkdir b; 1 create a w1.; 2 create c/a w2.; 1 sync; 1 rename a d; 2 sync; 1 rename d b/c; 2 create b/c w3.; 2 rename c/a a; 1 sync",
		"2 create b w1.; 1 symlink d to1; 1 sync; 2 mkdir c; 2 sync; 1 sync; 1 create c/b w2.; 1 exchange c/b b; 2 create c/b w3.; 1 sync; 2 rename d b; 1 sync",
	} {
		for _, kind := range []conflict.Kind{conflict.Append, conflict.Exec} {
			for _, only := range []bool{false, true} {
				h := newHistory(testutil.Rand(t), 2, only, conflict.Policy{Kind: kind, Program: "join"})
				for _, c := range h.cs {
					c.Merge = nil
				}
				if err := h.script(steps); err != nil {
					t.Errorf("%v: %v\n%s", kind, err, strings.Join(h.log, "\n"))
				}
			}
		}
	}
}

// script plays steps: a host's number and an operation, or sync; and heals.
func (h *history) script(steps string) error {
	for _, op := range parseOps(steps) {
		i := int(op[0][0] - '1')
		if op[1] == "sync" {
			if err := h.sync(i); err != nil {
				return err
			}
			continue
		}
		if done, err := h.u.Play(h.cs[i], op[1:]); err != nil || !done {
			return fmt.Errorf("%s: %v, %w", op, done, err)
		}
	}
	return h.heal()
}
