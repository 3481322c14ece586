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
