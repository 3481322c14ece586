package cachefs

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Pin says what is to be kept here: what matches Pattern, and all that is below.
type Pin struct {
	// Pattern is a path from the root, with a slash in front, whose parts are as
	// path.Match has them; a part ** is any number of folders.
	Pattern string
	// Priority orders what is fetched, the highest first.
	Priority int
}

// maxPins bounds their number.
const maxPins = 4096

// EscapePattern makes a pattern of a path that matches that path only.
func EscapePattern(p string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(p)
}

// parts takes a pattern apart; EINVAL when it is none.
func (p Pin) parts() ([]string, error) {
	if p.Pattern == "/" {
		return nil, nil
	}
	bad := fmt.Errorf("%q is not a pattern: %w", p.Pattern, syscall.EINVAL)
	if len(p.Pattern) > 4096 || !strings.HasPrefix(p.Pattern, "/") {
		return nil, bad
	}
	parts := strings.Split(p.Pattern[1:], "/")
	for _, s := range parts {
		if _, err := path.Match(s, ""); err != nil || s == "" || s == "." || s == ".." {
			return nil, bad
		}
	}
	return parts, nil
}

// spot is how far a path has matched a pattern: the parts that may come next.
// Its last bit, that of len(parts), says that all of it has.
type spot []bool

// start is where the root is.
func start(parts []string) spot { return closed(parts, make(spot, len(parts)+1), 0) }

// closed adds a part, and what may come after it without a folder.
func closed(parts []string, s spot, i int) spot {
	s[i] = true
	for i < len(parts) && parts[i] == "**" {
		i++
		s[i] = true
	}
	return s
}

// step is where a name in a folder is; nil when nothing there can match.
func (s spot) step(parts []string, name string) spot {
	next := make(spot, len(s))
	any := false
	for i, p := range parts {
		if !s[i] {
			continue
		}
		if p == "**" {
			next, any = closed(parts, next, i), true
		} else if ok, _ := path.Match(p, name); ok { // it was checked
			next, any = closed(parts, next, i+1), true
		}
	}
	if !any {
		return nil
	}
	return next
}

func (s spot) whole() bool { return s[len(s)-1] }

// pinsPath keeps the pins: a line each, priority and quoted pattern.
func (c *Client) pinsPath() string { return c.cache.State().Path("pins") }

func loadPins(path string) ([]Pin, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pins []Pin
	for line := range strings.Lines(string(b)) {
		p, err := parsePin(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		pins = append(pins, p)
	}
	return pins, nil
}

// parsePin reads PRIORITY "PATTERN".
func parsePin(line string) (Pin, error) {
	number, quoted, _ := strings.Cut(line, " ")
	prio, err := strconv.ParseInt(number, 10, 32)
	pattern, err2 := strconv.Unquote(quoted)
	if err != nil || err2 != nil {
		return Pin{}, fmt.Errorf("%q is not a pin: %w", line, syscall.EINVAL)
	}
	p := Pin{Pattern: pattern, Priority: int(prio)}
	_, err = p.parts()
	return p, err
}

func (p Pin) String() string { return fmt.Sprintf("%d %q", p.Priority, p.Pattern) }

// savePins writes them so that a crash leaves these or the ones before.
func savePins(path string, pins []Pin) error {
	var b strings.Builder
	for _, p := range pins {
		fmt.Fprintln(&b, p)
	}
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(b.String())
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path+".new"))
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Pin has what matches kept here from now on, over restarts too; a pin of the
// same pattern gets another priority. It does not wait.
func (c *Client) Pin(p Pin) error {
	if _, err := p.parts(); err != nil {
		return err
	}
	return c.changePins(func(pins []Pin) ([]Pin, error) {
		pins = slices.DeleteFunc(slices.Clone(pins), func(q Pin) bool { return q.Pattern == p.Pattern })
		if len(pins) == maxPins {
			return nil, fmt.Errorf("there are %d pins: %w", maxPins, syscall.ENOSPC)
		}
		return append(pins, p), nil
	})
}

// Unpin ends what Pin began; ENOENT when there is no such pin.
func (c *Client) Unpin(pattern string) error {
	return c.changePins(func(pins []Pin) ([]Pin, error) {
		left := slices.DeleteFunc(slices.Clone(pins), func(q Pin) bool { return q.Pattern == pattern })
		if len(left) == len(pins) {
			return nil, fmt.Errorf("%q is not pinned: %w", pattern, syscall.ENOENT)
		}
		return left, nil
	})
}

func (c *Client) changePins(f func([]Pin) ([]Pin, error)) error {
	h := &c.hoard
	h.turn.Lock()
	defer h.turn.Unlock()
	h.mu.Lock()
	was := h.pins
	h.mu.Unlock()
	pins, err := f(was)
	if err != nil {
		return err
	}
	slices.SortStableFunc(pins, func(a, b Pin) int {
		return cmp.Or(b.Priority-a.Priority, strings.Compare(a.Pattern, b.Pattern))
	})
	if err := savePins(c.pinsPath(), pins); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pins = pins
	h.asked++
	h.wake()
	h.say(h.state)
	return nil
}
