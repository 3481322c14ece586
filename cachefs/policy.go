package cachefs

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"syscall"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml/conflict"
)

// maxPolicies is how long a text of policies may be, in bytes.
const maxPolicies = 64 << 10

// Policies is how conflicts are settled in the fileset, as far as this client has
// heard: from the master when the cache began, and with every change in the log.
func (c *Client) Policies() conflict.Policies {
	if p := c.rules.Load(); p != nil {
		return *p
	}
	return conflict.Policies{}
}

// setPolicies takes up a text of the master's, and keeps it for the time without
// one. One that cannot be read, of a newer master, leaves what was in force.
func (c *Client) setPolicies(text []byte) {
	p, err := conflict.ParsePolicies(text)
	if err != nil {
		c.log.Warn("the fileset's policy cannot be read; the one before stays in force", "err", err)
		return
	}
	c.rules.Store(&p)
	path := c.cache.State().Path("policy")
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, text) {
		return
	}
	if err := renameio.WriteFile(path, text, 0o600); err != nil {
		c.log.Warn("the fileset's policy is not kept", "path", path, "err", err)
	}
}

// loadPolicies takes up what was kept.
func (c *Client) loadPolicies() error {
	text, err := os.ReadFile(c.cache.State().Path("policy"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	c.setPolicies(text)
	return nil
}

// fetchPolicies asks the master. One that is too old to have policies has none.
func (c *Client) fetchPolicies(ctx context.Context, up *upstream) error {
	f, err := up.calls.Open(ctx, unix.O_RDONLY, "policy")
	if errors.Is(err, syscall.ENOENT) {
		c.setPolicies(nil)
		return nil
	}
	if err != nil {
		return err
	}
	text := make([]byte, maxPolicies+1)
	n := 0
	for n < len(text) {
		m, err := f.ReadAt(ctx, text[n:], int64(n))
		if err != nil {
			return errors.Join(err, f.Close())
		}
		if m == 0 {
			break
		}
		n += m
	}
	c.setPolicies(text[:n])
	return f.Close()
}
