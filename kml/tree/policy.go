package tree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/google/renameio/v2"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
)

// policyText is how conflicts are settled in a fileset, as text: in the file
// policy of the state folder what the last mark in the log says. A change stands in
// policy.new before it is in the log, and is made once more after a crash between.
type policyText struct {
	mu   sync.Mutex // one change at a time
	text atomic.Pointer[[]byte]
}

// Policy is how conflicts are settled in this fileset: text as package conflict
// reads it. It must not be written to.
func (t *Tree) Policy() []byte {
	if p := t.policy.text.Load(); p != nil {
		return *p
	}
	return nil
}

// SetPolicy changes how conflicts are settled: it is in the log, for every client,
// and durable when it returns. check says whether the text can be read.
func (t *Tree) SetPolicy(ctx context.Context, c *Cred, text []byte, check func([]byte) error) error {
	if err := check(text); err != nil {
		return fmt.Errorf("%w: %w", err, syscall.EINVAL)
	}
	t.policy.mu.Lock()
	defer t.policy.mu.Unlock()
	return t.setPolicy(ctx, c, text)
}

// setPolicy is SetPolicy under its lock.
func (t *Tree) setPolicy(ctx context.Context, c *Cred, text []byte) error {
	path := t.state.Path("policy")
	if err := renameio.WriteFile(path+".new", text, 0o600); err != nil {
		return err
	}
	fault.Point("tree.policy")
	r := t.record(c, kml.OpMark)
	r.Mark, r.Value = kml.MarkPolicy, text
	res, err := t.reserve(r)
	if err != nil {
		return errors.Join(err, os.Remove(path+".new"))
	}
	defer res.Release()
	if err := t.journal(mutation{rec: r, res: &res}); err != nil {
		return errors.Join(err, os.Remove(path+".new"))
	}
	if err := t.commit(ctx); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	t.policy.text.Store(&text)
	return nil
}

// openPolicy reads the policy, and finishes a change that a crash interrupted.
func (t *Tree) openPolicy(ctx context.Context) error {
	path := t.state.Path("policy")
	text, err := os.ReadFile(path + ".new")
	if err == nil {
		return t.setPolicy(ctx, nil, text)
	}
	if errors.Is(err, fs.ErrNotExist) {
		text, err = os.ReadFile(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	t.policy.text.Store(&text)
	return nil
}
