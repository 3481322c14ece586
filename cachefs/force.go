package cachefs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml/tree"
)

// offlinePath is there while the client is to have no link: also after a
// restart.
func (c *Client) offlinePath() string { return c.cache.State().Path("offline") }

// SetOffline gives the link up, until it is called with false, in this run or
// another.
func (c *Client) SetOffline(on bool) error {
	var err error
	if on {
		err = os.WriteFile(c.offlinePath(), nil, 0o600)
	} else if err = os.Remove(c.offlinePath()); errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	up := c.up
	if c.forced != on {
		c.forced = on
		if on {
			c.set(Offline, nil)
			c.why = nil
		} else {
			c.set(Disconnected, nil)
		}
	}
	c.mu.Unlock()
	if on && up != nil {
		c.log.Info("offline until told otherwise", "addr", c.o.Addr)
		up.close()
	}
	return nil
}

// allowed waits until a link may be made; false when the client is closed.
func (c *Client) allowed() bool {
	for {
		c.mu.Lock()
		forced, changed := c.forced, c.changed
		c.mu.Unlock()
		if !forced {
			return c.ctx.Err() == nil
		}
		select {
		case <-changed:
		case <-c.ctx.Done():
			return false
		}
	}
}

// control does what a line that was written to ctl says.
func (c *Client) control(ctx context.Context, line string) error {
	if word, rest, ok := strings.Cut(strings.TrimSpace(line), " "); ok && (word == "pin" || word == "unpin") {
		return c.controlPins(ctx, word, rest)
	}
	words := strings.Fields(line)
	if len(words) == 2 {
		return c.adjust(words[0], words[1])
	}
	switch strings.TrimSpace(line) {
	case "offline":
		return c.SetOffline(true)
	case "online":
		return c.SetOffline(false)
	case "push":
		if err := c.cache.CutAll(); err != nil {
			return err
		}
		c.push.retry()
		c.hurry()
		return nil
	case "sync":
		return c.Sync(ctx)
	case "hoard":
		return c.Hoard(ctx, false)
	}
	return fmt.Errorf("ctl: %q is none of offline, online, push, sync, hoard, pin N \"PATTERN\", unpin \"PATTERN\", bwlimit N and aging TIME: %w", line, syscall.EINVAL)
}

// controlPins takes PRIORITY "PATTERN" of pin, which waits until it is known how
// much that is when there is a link, or "PATTERN" of unpin.
func (c *Client) controlPins(ctx context.Context, word, rest string) error {
	if word == "unpin" {
		pattern, err := strconv.Unquote(rest)
		if err != nil {
			return fmt.Errorf("ctl: %q is not a quoted pattern: %w", rest, syscall.EINVAL)
		}
		return c.Unpin(pattern)
	}
	p, err := parsePin(rest)
	if err != nil {
		return fmt.Errorf("ctl: %w", err)
	}
	if err := c.Pin(p); err != nil {
		return err
	}
	if err := c.Hoard(ctx, true); err != nil && !errors.Is(err, syscall.EHOSTDOWN) {
		return err
	}
	return nil
}

// adjust changes an option of a client that runs.
func (c *Client) adjust(word, value string) error {
	switch word {
	case "bwlimit":
		n, err := ParseBandwidth(value)
		if err != nil {
			return fmt.Errorf("ctl: bwlimit: %w: %w", err, syscall.EINVAL)
		}
		return c.SetBandwidth(n)
	case "aging":
		d, err := time.ParseDuration(value)
		if err != nil {
			return fmt.Errorf("ctl: aging: %w: %w", err, syscall.EINVAL)
		}
		return c.SetAging(d)
	}
	return fmt.Errorf("ctl: %q takes no value: %w", word, syscall.EINVAL)
}

// ctlNode is the file that takes commands, from who runs the client and root.
func (x ext) ctlNode() tree.ExtNode {
	return tree.ExtNode{Name: "ctl", ID: idCtl, Mode: unix.S_IFREG | 0o200, Text: true,
		Size: func(context.Context) (uint64, error) { return 0, nil },
		Open: func(_ context.Context, cred *tree.Cred, flags int) (tree.ExtHandle, error) {
			if cred != nil && cred.UID != 0 && int(cred.UID) != os.Geteuid() {
				return nil, syscall.EACCES
			}
			return &ctlHandle{x.c}, nil
		}}
}

// ctlHandle takes a command with each write.
type ctlHandle struct{ c *Client }

// ReadAt is tree.ExtHandle's: there is nothing to read.
func (h *ctlHandle) ReadAt(context.Context, []byte, int64) (int, error) { return 0, nil }

// WriteAt is tree.ExtHandle's. It returns when the command is done.
func (h *ctlHandle) WriteAt(ctx context.Context, p []byte, _ int64) (int, error) {
	if err := h.c.control(ctx, string(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Attr is tree.ExtHandle's.
func (h *ctlHandle) Attr() (tree.Attr, bool) { return tree.Attr{}, false }

// Close is tree.ExtHandle's.
func (h *ctlHandle) Close() error { return nil }
