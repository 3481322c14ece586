package cachefs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// hoard keeps what is pinned here: a walk finds it, and what is missing of it is
// fetched, the highest priority first; what changes later is fetched again.
type hoard struct {
	kick chan struct{}
	turn sync.Mutex // held by who changes pins; before mu

	mu     sync.Mutex // guards what follows
	pins   []Pin      // highest priority first
	asked  int        // counts changes of pins
	walked int        // asked, when the last whole walk began
	stale  bool       // names have changed since
	all    bool       // everything is looked at, not redo alone
	state  string
	files  map[kml.OID]*hoarded // what is pinned, as of the last walk
	dirs   map[kml.OID]bool     // where pinned names may come to be
	redo   map[kml.OID]bool     // contents that have changed since
	stats  []PinStats           // as pins were then
	moved  chan struct{}        // closed when any of that changes
}

// hoarded is a pinned file. Its fields do not change.
type hoarded struct {
	path string
	pin  int // the first, and so most urgent, that it is under
}

// PinStats is a pin, and how much of it is here.
type PinStats struct {
	Pin
	Files, Bytes               int64 // regular files
	MissingFiles, MissingBytes int64
	Unlisted                   int64 // folders whose names are not known here
}

// MissingFile is a pinned file that is not, or not wholly, here.
type MissingFile struct {
	Path  string
	Bytes int64 // that are missing
}

const (
	hoardFiles = 32   // small ones that are fetched, and folders listed, at a time
	hoardLarge = 2    // files over headMax that are fetched at a time
	maxMissing = 1000 // of which a list tells
	// hoardPause is between two walks, or hoardRest times what the last one took.
	hoardPause = 200 * time.Millisecond
	hoardRest  = 9
	hoardRetry = 5 * time.Second // after a failure that is not the link's
)

// The states of the hoard.
const (
	hoardIdle     = "complete"
	hoardWalking  = "walking"
	hoardFetching = "fetching"
	hoardWaiting  = "waiting for the master"
	hoardTrouble  = "incomplete"
)

func (h *hoard) init() {
	h.kick = make(chan struct{}, 1)
	h.moved = make(chan struct{})
	h.redo = make(map[kml.OID]bool)
	h.state = hoardIdle
}

// wake has the hoard looked at again. The caller holds mu.
func (h *hoard) wake() {
	select {
	case h.kick <- struct{}{}:
	default:
	}
}

// say changes the state. The caller holds mu.
func (h *hoard) say(state string) {
	h.state = state
	close(h.moved)
	h.moved = make(chan struct{})
}

// openHoard reads the pins and looks at changes from now on.
func (c *Client) openHoard() (err error) {
	h := &c.hoard
	if h.pins, err = loadPins(c.pinsPath()); err != nil {
		return err
	}
	h.stale = true
	h.wake()
	return nil
}

// changed notes a change of the tree; it is called under locks of the cache.
func (h *hoard) changed(ch tree.Change) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.pins) == 0 {
		return
	}
	switch {
	case ch.Kind&tree.ChangeEntry != 0 && (h.dirs[ch.Parent] || h.files[ch.OID] != nil):
		h.stale = true
	case ch.Kind&tree.ChangeEntry == 0 && h.files[ch.OID] != nil:
		h.redo[ch.OID] = true
	default:
		return
	}
	h.wake()
}

// hoardLoop walks and fetches until the client is closed.
func (c *Client) hoardLoop() {
	defer c.cache.Watch(c.hoard.changed)()
	h := &c.hoard
	var seen *upstream
	for {
		_, up, state := c.watchState()
		if up != nil && up != seen {
			seen = up
			h.mu.Lock()
			h.all = true
			h.mu.Unlock()
		} else {
			select {
			case <-h.kick:
			case <-state:
				continue
			case <-c.ctx.Done():
				return
			}
		}
		began := time.Now()
		err := c.hoardOnce()
		if c.ctx.Err() != nil {
			return
		}
		pause := max(hoardPause, min(hoardRest*time.Since(began), time.Minute))
		if err != nil && !errors.Is(err, syscall.EHOSTDOWN) {
			c.log.Warn("what is pinned could not be fetched; it is tried again", "addr", c.o.Addr, "err", err)
			pause = max(pause, hoardRetry)
			h.mu.Lock()
			h.wake()
			h.mu.Unlock()
		}
		if !c.pause(pause) {
			return
		}
	}
}

// pause waits d, or until pins change; false when the client is closed.
func (c *Client) pause(d time.Duration) bool {
	h := &c.hoard
	t := time.NewTimer(d)
	defer t.Stop()
	h.mu.Lock()
	asked := h.asked
	h.mu.Unlock()
	for {
		h.mu.Lock()
		moved, other := h.moved, h.asked != asked
		h.mu.Unlock()
		if other {
			return true
		}
		select {
		case <-t.C:
			return true
		case <-moved:
		case <-c.ctx.Done():
			return false
		}
	}
}

// hoardOnce walks if names or pins have changed, and fetches what is missing.
func (c *Client) hoardOnce() error {
	h := &c.hoard
	h.mu.Lock()
	pins, asked := h.pins, h.asked
	walk := h.stale || h.walked != asked || h.files == nil
	if walk {
		h.stale, h.all = false, true
		clear(h.redo)
		h.say(hoardWalking)
	}
	h.mu.Unlock()
	var err error
	if walk {
		err = c.hoardWalk(pins, asked)
	}
	if e := c.hoardFetch(asked); err == nil {
		err = e
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err == nil:
		h.all = false
		h.say(hoardIdle)
	case errors.Is(err, syscall.EHOSTDOWN):
		h.stale = true // looked at again with the next link
		h.say(hoardWaiting)
	default:
		h.stale = true
		h.say(hoardTrouble)
	}
	return err
}

// hoardWalk finds what is pinned. Folders whose names are not known here are
// listed; without a link that is left for later.
func (c *Client) hoardWalk(pins []Pin, asked int) error {
	w := &hoardWalk{c: c, files: make(map[kml.OID]*hoarded), dirs: make(map[kml.OID]bool), stats: make([]PinStats, len(pins))}
	w.g.SetLimit(hoardFiles)
	var errs []error
	for i, p := range pins {
		w.stats[i].Pin = p
		parts, err := p.parts()
		if err != nil {
			return err // they were checked
		}
		for level := []hoardDir{{kml.RootOID, "", start(parts)}}; len(level) > 0; {
			var next []hoardDir
			if next, err = w.level(i, parts, level); err != nil {
				errs = append(errs, err)
			}
			level = next
		}
	}
	h := &c.hoard
	h.mu.Lock()
	defer h.mu.Unlock()
	h.files, h.dirs, h.stats, h.walked = w.files, w.dirs, w.stats, asked
	return errors.Join(errs...)
}

// hoardWalk is a walk on its way.
type hoardWalk struct {
	c     *Client
	g     errgroup.Group
	files map[kml.OID]*hoarded
	dirs  map[kml.OID]bool
	stats []PinStats
}

// hoardDir is a folder, and how far its path matches the pattern.
type hoardDir struct {
	oid  kml.OID
	path string
	at   spot
}

// level looks at the folders of one depth, and gives those below.
func (w *hoardWalk) level(pin int, parts []string, dirs []hoardDir) (next []hoardDir, err error) {
	c := w.c
	errs := make([]error, len(dirs))
	for i, d := range dirs {
		w.dirs[d.oid] = true
		if _, whole, e := c.cache.Children(d.oid); e != nil || whole {
			continue
		}
		w.g.Go(func() error {
			errs[i] = c.List(c.ctx, d.oid)
			return nil
		})
	}
	_ = w.g.Wait() // each has its own error
	for i, d := range dirs {
		if e := errs[i]; e != nil && !errors.Is(e, syscall.ESTALE) && !errors.Is(e, syscall.ENOENT) {
			err = e
		}
		es, whole, e := c.cache.Children(d.oid)
		if e != nil {
			continue // gone meanwhile
		}
		if !whole {
			w.stats[pin].Unlisted++
		}
		for _, n := range es {
			at := d.at
			if !at.whole() {
				if at = d.at.step(parts, n.Name); at == nil {
					continue
				}
			}
			obj, e := c.cache.Object(n.OID)
			if e != nil {
				continue
			}
			k := hoardDir{n.OID, d.path + "/" + n.Name, at}
			switch obj.Attr.Mode & unix.S_IFMT {
			case unix.S_IFDIR:
				next = append(next, k)
			case unix.S_IFREG:
				if at.whole() {
					w.file(pin, k, int64(obj.Attr.Size))
				}
			}
		}
	}
	return next, err
}

// file takes a pinned file up, for the most urgent of its pins.
func (w *hoardWalk) file(pin int, k hoardDir, size int64) {
	if w.files[k.oid] != nil {
		return
	}
	w.files[k.oid] = &hoarded{k.path, pin}
	s := &w.stats[pin]
	s.Files++
	s.Bytes += size
	if n, err := w.c.cache.Missing(k.oid); err == nil && n > 0 {
		s.MissingFiles++
		s.MissingBytes += n
	}
}

// hoardFetch fetches what is missing, until all is here or the pins are others.
func (c *Client) hoardFetch(asked int) error {
	h := &c.hoard
	h.mu.Lock()
	files := h.files
	oids := slices.Collect(maps.Keys(h.redo))
	if h.all {
		oids = slices.Collect(maps.Keys(files))
	}
	clear(h.redo)
	h.mu.Unlock()
	oids = slices.DeleteFunc(oids, func(oid kml.OID) bool {
		n, err := c.cache.Missing(oid)
		return err != nil || n == 0 || files[oid] == nil
	})
	if len(oids) == 0 {
		return nil
	}
	slices.SortFunc(oids, func(a, b kml.OID) int {
		x, y := files[a], files[b]
		if x.pin != y.pin {
			return x.pin - y.pin
		}
		return strings.Compare(x.path, y.path)
	})
	h.mu.Lock()
	h.say(hoardFetching)
	h.mu.Unlock()
	g, ctx := errgroup.WithContext(c.ctx)
	g.SetLimit(hoardFiles)
	large := make(chan struct{}, hoardLarge)
	var mu sync.Mutex
	var bad error
	for _, oid := range oids {
		h.mu.Lock()
		other := h.asked != asked
		h.mu.Unlock()
		if other || ctx.Err() != nil {
			break
		}
		slot := c.expected(oid) == 0
		if slot {
			large <- struct{}{} // each takes many requests of its own
		}
		g.Go(func() error {
			if slot {
				defer func() { <-large }()
			}
			err := c.cache.Bring(ctx, oid)
			switch {
			case errors.Is(err, syscall.EHOSTDOWN):
				return err // for all of them
			case err == nil, errors.Is(err, syscall.ESTALE), errors.Is(err, syscall.ENOENT), errors.Is(err, tree.ErrNotFound), ctx.Err() != nil:
			default: // others may do
				mu.Lock()
				bad = fmt.Errorf("%q: %w", files[oid].path, err)
				mu.Unlock()
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return bad
}

// Hoard waits until everything that is pinned is here, or with walk only until
// it is known how much that is. EHOSTDOWN when that needs the master and there is
// no link.
func (c *Client) Hoard(ctx context.Context, walk bool) error {
	h := &c.hoard
	for {
		_, up, state := c.watchState()
		h.mu.Lock()
		moved := h.moved
		known := h.walked == h.asked && h.files != nil && h.state != hoardWalking
		done := known && h.state == hoardIdle && !h.stale && len(h.redo) == 0
		bad := h.walked == h.asked && (h.state == hoardWaiting || h.state == hoardTrouble)
		if up != nil && bad && h.state == hoardWaiting {
			h.wake()
			bad = false
		}
		h.mu.Unlock()
		switch {
		case done || walk && known:
			return nil
		case bad && up == nil:
			return syscall.EHOSTDOWN
		case bad:
			return syscall.EIO // the log says more
		}
		select {
		case <-moved:
		case <-state:
		case <-ctx.Done():
			return ctx.Err()
		case <-c.ctx.Done():
			return syscall.ESHUTDOWN
		}
	}
}

// Pins is what is pinned, how much of it is here, what is missing (some, when it
// is much), and what is being done about it.
func (c *Client) Pins() (stats []PinStats, missing []MissingFile, state string) {
	h := &c.hoard
	h.mu.Lock()
	stats, state = slices.Clone(h.stats), h.state
	files := h.files
	pins := slices.Clone(h.pins)
	h.mu.Unlock()
	if !slices.EqualFunc(stats, pins, func(s PinStats, p Pin) bool { return s.Pin == p }) {
		stats = make([]PinStats, len(pins)) // not walked yet
		for i, p := range pins {
			stats[i].Pin = p
		}
		return stats, nil, hoardWalking
	}
	for i := range stats {
		stats[i].MissingFiles, stats[i].MissingBytes = 0, 0
	}
	for oid, f := range files {
		n, err := c.cache.Missing(oid)
		if err != nil || n == 0 {
			continue
		}
		stats[f.pin].MissingFiles++
		stats[f.pin].MissingBytes += n
		missing = append(missing, MissingFile{f.path, n})
	}
	slices.SortFunc(missing, func(a, b MissingFile) int { return strings.Compare(a.Path, b.Path) })
	return stats, missing[:min(len(missing), maxMissing)], state
}

// pinsText is that, a line each.
func (c *Client) pinsText() []byte {
	stats, missing, state := c.Pins()
	var b strings.Builder
	fmt.Fprintf(&b, "state: %s\n", state)
	for _, s := range stats {
		fmt.Fprintf(&b, "pin: %v files %d bytes %d missing_files %d missing_bytes %d unlisted %d\n",
			s.Pin, s.Files, s.Bytes, s.MissingFiles, s.MissingBytes, s.Unlisted)
	}
	for _, m := range missing {
		fmt.Fprintf(&b, "missing: %q %d\n", m.Path, m.Bytes)
	}
	return []byte(b.String())
}
