package cachefs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// later is when an entry is tried again for which the master had no room.
type later struct {
	at    time.Time
	wait  time.Duration // before the last try
	errno syscall.Errno
}

// Waits between tries.
const (
	firstLater = 500 * time.Millisecond
	lastLater  = 30 * time.Second
)

// noRoom reports whether an error is that a disk or a quota is full, which
// passes: the change stays here until it has.
func noRoom(errno syscall.Errno) bool {
	return errno == syscall.ENOSPC || errno == syscall.EDQUOT
}

// noRoom puts an entry off. Others overtake it, but for stores of the same
// object.
func (c *Client) noRoom(e *entry, errno syscall.Errno) {
	p := &c.push
	p.mu.Lock()
	first := e.later.wait == 0
	wait := min(max(2*e.later.wait, firstLater), lastLater)
	e.later, e.on = later{at: time.Now().Add(wait), wait: wait, errno: errno}, nil
	p.stepped()
	p.mu.Unlock()
	if first {
		c.log.Warn("the master has no room; the change is kept here and tried again", "addr", c.o.Addr, "oid", e.rec.OID, "err", errno)
	}
	time.AfterFunc(wait, p.wake)
}

// uploads sends the bytes of a batch's stores, and leaves out of the batch what
// the master has no room for, and later stores of the same objects.
func (c *Client) uploads(up *upstream, batch []*entry) ([]*entry, error) {
	held := map[kml.OID]bool{}
	var rest []*entry
	for _, e := range batch {
		if held[e.rec.OID] && e.keep {
			c.push.mu.Lock()
			e.on = nil
			c.push.mu.Unlock()
			continue
		}
		if e.rec.Op == kml.OpStore && e.rec.Attr.Size > 0 {
			err := c.upload(up, e)
			var errno syscall.Errno
			switch {
			case err == nil:
			case errors.As(err, &errno) && noRoom(errno):
				c.noRoom(e, errno)
				held[e.rec.OID] = true
				continue
			default:
				return nil, fmt.Errorf("upload of record %d: %w", e.seq, err)
			}
		}
		rest = append(rest, e)
	}
	return rest, nil
}

// zero reports whether b is all zeros.
func zero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}

// uploadPiece is the size of a write of an upload, uploadDepth how many are on
// their way at a time.
const (
	uploadPiece = 256 << 10
	uploadDepth = 4
)

// upload puts a store's bytes into the master's stage. What an earlier link
// left there is replaced.
func (c *Client) upload(up *upstream, e *entry) (err error) {
	src, err := os.Open(c.out.data(e.seq))
	if errors.Is(err, os.ErrNotExist) {
		return nil // came back before, and was asked for again: the master knows it
	}
	if err != nil {
		return err
	}
	defer src.Close()
	name := fmt.Sprintf("%d-%d", e.rec.Origin.Site, e.seq)
	create := func() (linkFile, error) {
		return up.calls.Create(up.ctx, unix.O_WRONLY|unix.O_TRUNC, "stage", name)
	}
	f, err := create()
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		var errno syscall.Errno
		if !errors.As(err, &errno) || !noRoom(errno) {
			return
		}
		// What has got there does not take room from others meanwhile.
		if f, e := create(); e == nil {
			err = errors.Join(err, f.Close())
		}
	}()
	g, ctx := errgroup.WithContext(up.ctx)
	g.SetLimit(uploadDepth)
	size := int64(e.rec.Attr.Size)
	for off := int64(0); off < size && ctx.Err() == nil; off += uploadPiece {
		g.Go(func() error {
			b := make([]byte, min(uploadPiece, size-off))
			if _, err := io.ReadFull(io.NewSectionReader(src, off, int64(len(b))), b); err != nil {
				return err
			}
			if off+uploadPiece < size && zero(b) {
				return nil // a hole there, as likely as not one here
			}
			for n := 0; n < len(b); {
				m, err := f.WriteAt(ctx, b[n:], off+int64(n))
				if err != nil {
					return err
				}
				if m == 0 {
					return io.ErrShortWrite
				}
				n += m
			}
			return nil
		})
	}
	return g.Wait()
}
