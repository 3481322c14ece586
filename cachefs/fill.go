package cachefs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/tree"
)

// flights lets those who ask for the same thing at the same time share one
// request.
type flights struct {
	mu sync.Mutex
	m  map[flightKey]*flight
}

type flightKey struct {
	oid   kml.OID
	depth int
}

type flight struct {
	done chan struct{}
	err  error
}

// do runs f once for all who ask meanwhile. f goes on when an asker leaves.
func (c *Client) do(ctx context.Context, k flightKey, f func(ctx context.Context) error) error {
	c.lists.mu.Lock()
	r := c.lists.m[k]
	if r == nil {
		if c.ctx.Err() != nil {
			c.lists.mu.Unlock()
			return syscall.ESHUTDOWN
		}
		if c.lists.m == nil {
			c.lists.m = make(map[flightKey]*flight)
		}
		r = &flight{done: make(chan struct{})}
		c.lists.m[k] = r
		c.wg.Go(func() {
			r.err = f(c.ctx)
			c.lists.mu.Lock()
			delete(c.lists.m, k)
			c.lists.mu.Unlock()
			close(r.done)
		})
	}
	c.lists.mu.Unlock()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// List is tree.Upstream's: one snapshot of the folder and its entries.
func (c *Client) List(ctx context.Context, oid kml.OID) error {
	return c.do(ctx, flightKey{oid, 1}, func(ctx context.Context) error { return c.fill(ctx, oid, 1) })
}

// Find is tree.Upstream's: a snapshot of one object.
func (c *Client) Find(ctx context.Context, oid kml.OID) error {
	return c.do(ctx, flightKey{oid, 0}, func(ctx context.Context) error { return c.fill(ctx, oid, 0) })
}

// fill brings a part of the tree as of a position and up to the cursor.
func (c *Client) fill(ctx context.Context, oid kml.OID, depth int) error {
	up, err := c.online(ctx)
	if err != nil {
		return err
	}
	f := c.cache.BeginFill()
	defer f.End()
	bound, stop := up.bind(ctx)
	defer stop()
	s, err := c.snapshot(bound, up, oid, depth)
	if err != nil {
		return up.down(ctx, err)
	}
	if err := c.cache.Reach(bound, s.begin.Position); err != nil {
		return up.down(ctx, err)
	}
	return f.Apply(s.begin.Position, s.entries, depth != 0)
}

// snapshot is what the master answered.
type snapshot struct {
	begin   feed.SnapBegin
	entries []tree.SnapshotEntry
}

// callTime bounds the wait for each piece of an answer.
const callTime = 10 * time.Second

func (c *Client) snapshot(ctx context.Context, u *upstream, oid kml.OID, depth int) (*snapshot, error) {
	f, err := u.open(ctx, u.calls, unix.O_RDWR, "snapshot")
	if err != nil {
		return nil, err
	}
	s := &stream{f: f}
	defer c.later(func() { _ = s.close() })
	return readSnapshot(ctx, s, oid, depth)
}

// readSnapshot asks for a part of the tree, and reads the answer.
func readSnapshot(ctx context.Context, s *stream, oid kml.OID, depth int) (*snapshot, error) {
	if err := s.write(ctx, []byte(feed.SnapshotRequest{OID: oid, Depth: depth}.String())); err != nil {
		return nil, err
	}
	var out snapshot
	for {
		step, cancel := context.WithTimeout(ctx, callTime)
		m, err := s.next(step)
		cancel()
		if err != nil {
			return nil, err
		}
		switch m := m.(type) {
		case *feed.SnapBegin:
			out.begin = *m
		case *feed.Entry:
			out.entries = append(out.entries, tree.SnapshotEntry{Record: m.Record, Version: m.Version, DataVersion: m.DataVersion})
		case *feed.SnapEnd:
			if m.Count != uint64(len(out.entries)) || out.begin.OID != oid {
				return nil, fmt.Errorf("snapshot of %v has %d entries of %d: %w", oid, len(out.entries), m.Count, feed.ErrFrame)
			}
			return &out, nil
		case *feed.Failure:
			if m.Code == feed.CodeNoObject {
				return nil, syscall.ESTALE
			}
			return nil, m
		default:
			return nil, unexpected(m, "an entry")
		}
	}
}

// position is the end of the master's log now.
func (c *Client) position(ctx context.Context) (kml.Position, error) {
	up, err := c.online(ctx)
	if err != nil {
		return 0, err
	}
	bound, stop := up.bind(ctx)
	defer stop()
	s, err := c.snapshot(bound, up, kml.RootOID, 0)
	if err != nil {
		return 0, up.down(ctx, err)
	}
	return s.begin.Position, nil
}

// startOver begins the cache anew from a snapshot of the root.
func (c *Client) startOver(ctx context.Context, up *upstream) (kml.Position, uint32, error) {
	up.setup.Stop() // a large folder takes its time on a slow link; each piece has its own bound
	s, err := c.snapshot(ctx, up, kml.RootOID, 1)
	up.setup.Reset(4 * setupTime)
	if err != nil {
		return 0, 0, err
	}
	if at, _ := c.cache.Cursor(); at != 0 {
		c.keepSent()
	}
	if err := c.cache.Reset(s.begin.Position, s.begin.CRC); err != nil {
		return 0, 0, err
	}
	f := c.cache.BeginFill()
	defer f.End()
	return s.begin.Position, s.begin.CRC, f.Apply(s.begin.Position, s.entries, true)
}

// OpenVersion is tree.Upstream's.
func (c *Client) OpenVersion(ctx context.Context, oid kml.OID) (tree.Source, error) {
	up, err := c.online(ctx)
	if err != nil {
		return nil, err
	}
	bound, stop := up.bind(ctx)
	defer stop()
	bound, cancel := context.WithTimeout(bound, callTime)
	defer cancel()
	f, err := up.calls.Open(bound, unix.O_RDONLY, "oid", fmt.Sprintf("%016x", uint64(oid)))
	if errors.Is(err, syscall.ENOENT) {
		err = syscall.ESTALE
	}
	if err != nil {
		return nil, up.down(ctx, err)
	}
	s := &source{c: c, up: up, f: f}
	if err := s.describe(bound, c.expected(oid)); err != nil {
		s.Close()
		return nil, up.down(ctx, err)
	}
	return s, nil
}

// headMax is the size up to which a file is read together with the question
// which version it is.
const headMax = 256 << 10

// expected is how large a file is as far as is known here, 0 when it is not
// small.
func (c *Client) expected(oid kml.OID) int {
	obj, err := c.cache.Object(oid)
	if err != nil || obj.Attr.Size > headMax {
		return 0
	}
	return int(obj.Attr.Size)
}

// describe asks for size and version, and at the same time for the bytes of a
// file that has no more than n.
func (s *source) describe(ctx context.Context, n int) error {
	var g errgroup.Group
	if n > 0 {
		g.Go(func() error {
			b := make([]byte, n)
			m, err := s.f.ReadAt(ctx, b, 0)
			if err == nil {
				s.head = b[:m]
			}
			return nil // the reader asks again
		})
	}
	g.Go(func() error {
		size, version, err := s.f.Stat(ctx)
		s.size, s.version = size, kml.Position(version)
		return err
	})
	return g.Wait()
}

// source is one version of a file, open at the master.
type source struct {
	c       *Client
	up      *upstream
	f       linkFile
	size    uint64
	version kml.Position
	head    []byte // the first bytes, when they were read with the rest
}

// ReadAt is tree.Source's.
func (s *source) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off == 0 && len(p) <= len(s.head) {
		return copy(p, s.head), nil
	}
	bound, stop := s.up.bind(ctx)
	defer stop()
	n, err := s.c.read.readAt(bound, s.f, p, off)
	return n, s.up.down(ctx, err)
}

// Version is tree.Source's.
func (s *source) Version() kml.Position { return s.version }

// Size is tree.Source's.
func (s *source) Size() uint64 { return s.size }

// Close is tree.Source's. It does not wait for the master.
func (s *source) Close() error {
	s.c.later(func() { _ = s.f.Close() })
	return nil
}

// later runs what nobody waits for; Close waits for it. With the client closed
// there is no link left on which it would matter.
func (c *Client) later(f func()) {
	c.lists.mu.Lock()
	defer c.lists.mu.Unlock()
	if c.ctx.Err() == nil {
		c.wg.Go(f)
	}
}
