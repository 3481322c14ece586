package conflicttest

import (
	"fmt"
	"slices"
)

// World is two hosts of one fileset, called one and two, whatever they are made
// of. Part and Heal are called in turn, Part first; a World is for one cell.
type World interface {
	// Part ends the links between the hosts and the master.
	Part() error
	// Do makes an operation at a host, 1 or 2.
	Do(host int, op Op) error
	// Heal brings the changes of host 1 to the master, then those of host 2, and
	// waits until all trees are equal.
	Heal() error
	// Tree is what a host shows: lines of Entry.String in the order of Tree.String,
	// joined by spaces. The host's own name in conflict names is one or two. Kept is
	// what is in its conflicts, or "" where that is not looked at.
	Tree(host int) (tree, kept string, err error)
}

// Run runs a cell, from Setup on, and says what is not as it must be.
func Run(w World, c Cell) error {
	for _, op := range Setup() {
		if err := w.Do(1, op); err != nil {
			return fmt.Errorf("setup: %w", err)
		}
	}
	if err := w.Heal(); err != nil {
		return fmt.Errorf("setup: %w", err)
	}
	if err := w.Part(); err != nil {
		return err
	}
	for host, os := range [][]Op{c.One, c.Two} {
		for _, op := range os {
			if err := w.Do(host+1, op); err != nil {
				return fmt.Errorf("at %d: %w", host+1, err)
			}
		}
	}
	if err := w.Heal(); err != nil {
		return fmt.Errorf("heal: %w", err)
	}
	for host := 1; host <= 2; host++ {
		tree, kept, err := w.Tree(host)
		if err != nil {
			return err
		}
		if tree != c.Tree {
			return fmt.Errorf("at %d the tree is\n\t%s\nand must be\n\t%s", host, tree, c.Tree)
		}
		if host == 2 && kept != c.Kept {
			return fmt.Errorf("kept is %q, must be %q", kept, c.Kept)
		}
	}
	return nil
}

// Model is a World of a master and two clients in memory.
type Model struct {
	Master  *Master
	Clients [2]*Client
	// Only settles no more than what is concerned.
	Only bool
}

// NewModel is a Model with nothing in its tree.
func NewModel() *Model {
	m := NewMaster()
	return &Model{Master: m, Clients: [2]*Client{m.NewClient("one", 1), m.NewClient("two", 2)}}
}

// Part is World's.
func (m *Model) Part() error { return nil }

// Do is World's.
func (m *Model) Do(host int, op Op) error { return m.Clients[host-1].Do(op) }

// Heal is World's.
func (m *Model) Heal() error {
	for _, c := range []int{0, 1, 0} {
		k := m.Clients[c]
		if m.Only {
			if err := k.SettleOnly(); err != nil {
				return fmt.Errorf("%s: %w", k.name, err)
			}
			if err := k.Send(); err != nil {
				return fmt.Errorf("%s: %w", k.name, err)
			}
			continue
		}
		if err := k.Sync(); err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
	}
	return nil
}

// Tree is World's.
func (m *Model) Tree(host int) (tree, kept string, err error) {
	c := m.Clients[host-1]
	if got, want := c.View.String(), m.Master.Tree.String(); got != want {
		return "", "", fmt.Errorf("at %s:\n\t%s\nat the master:\n\t%s", c.name, got, want)
	}
	return c.View.String(), c.keptText(), nil
}

// Lost is what a host has written that its view showed when the hosts parted and
// that is neither in the tree nor in anybody's conflicts.
func (m *Model) Lost(written []string) (lost []string) {
	for _, data := range written {
		found := false
		for _, o := range m.Master.Tree.Objects {
			found = found || o.Data == data
		}
		for _, c := range m.Clients {
			found = found || slices.Contains(c.Kept, data)
		}
		if !found {
			lost = append(lost, data)
		}
	}
	return lost
}
