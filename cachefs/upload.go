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

// Sizes of uploads: those above largeUpload bytes run beside the sending of
// other changes; uploadPiece is the size of a write, uploadDepth how many of one
// upload, uploadFiles how many small uploads are on their way at a time.
const (
	largeUpload = 1 << 20
	uploadPiece = 256 << 10
	uploadDepth = 4
	uploadFiles = 16
)

// upload is a large upload on its way.
type upload struct {
	rec   *kml.Record
	began time.Time
}

// uploads sends the contents of a batch, and leaves out of it what has to wait:
// large contents, what the master has no room for, and what comes behind those.
func (c *Client) uploads(up *upstream, batch []*sending) ([]*sending, error) {
	errs := make([]error, len(batch))
	var g errgroup.Group
	g.SetLimit(uploadFiles)
	p := &c.push
	last := len(batch)
	for i, s := range batch {
		r := s.e.Rec()
		p.mu.Lock()
		staged := s.staged == up
		p.mu.Unlock()
		if !s.e.Data || staged {
			continue
		}
		if r.Attr.Size > largeUpload {
			c.begin(up, s)
			last = min(last, i)
			continue
		}
		g.Go(func() error {
			errs[i] = c.upload(up, s)
			return nil
		})
	}
	_ = g.Wait() // each has its own error
	p.mu.Lock()
	defer p.mu.Unlock()
	var held keySet
	var out []*sending
	for i, s := range batch {
		var errno syscall.Errno
		r := s.e.Rec()
		switch {
		case p.upping[s.e.ID] != nil || i > last && s.waited == 0 || held.holds(r):
			// looked at again in the next batch
		case errs[i] == nil:
			if s.e.Data {
				s.staged = up
			}
			out = append(out, s)
			continue
		case errors.As(errs[i], &errno):
			c.refused(s, errno, errs[i].Error())
		default:
			return nil, fmt.Errorf("upload of record %d: %w", r.Origin.Seq, errs[i])
		}
		held.add(r)
		p.again[s.e.ID] = true
	}
	return out, nil
}

// begin starts a large upload. It ends with the link.
func (c *Client) begin(up *upstream, s *sending) {
	p := &c.push
	p.mu.Lock()
	p.upping[s.e.ID] = &upload{rec: s.e.Rec(), began: time.Now()}
	p.again[s.e.ID] = true
	p.mu.Unlock()
	c.wg.Go(func() {
		err := c.upload(up, s)
		p.mu.Lock()
		delete(p.upping, s.e.ID)
		var errno syscall.Errno
		switch {
		case err == nil:
			s.staged, err = up, nil
		case errors.As(err, &errno):
			c.refused(s, errno, err.Error())
			err = nil
		}
		p.stepped()
		p.mu.Unlock()
		if err != nil {
			c.giveUp(up, fmt.Errorf("upload of record %d: %w", s.e.Seq(), err))
		}
		p.wake()
	})
}

// zero reports whether b is all zeros.
func zero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}

// upload puts a store's bytes into the master's stage. What an earlier link
// left there is replaced.
func (c *Client) upload(up *upstream, s *sending) (err error) {
	src, err := os.Open(c.cache.Local().Path(s.e.ID))
	if errors.Is(err, os.ErrNotExist) {
		return nil // came back before, and was asked for again: the master knows it
	}
	if err != nil {
		return err
	}
	defer src.Close()
	r := s.e.Rec()
	name := fmt.Sprintf("%d-%d", r.Origin.Site, r.Origin.Seq)
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
		if !errors.As(err, &errno) {
			return
		}
		// What has got there does not take room from others meanwhile.
		if f, e := create(); e == nil {
			err = errors.Join(err, f.Close())
		}
	}()
	size := int64(r.Attr.Size)
	if size <= uploadPiece {
		return c.piece(up, f, src, 0, size, true)
	}
	g, ctx := errgroup.WithContext(up.ctx)
	g.SetLimit(uploadDepth)
	for off := int64(0); off < size && ctx.Err() == nil; off += uploadPiece {
		g.Go(func() error {
			n := min(uploadPiece, size-off)
			return c.piece(up, f, src, off, n, off+n == size)
		})
	}
	return g.Wait()
}

// piece sends a piece of contents. A hole but for the last byte stays one.
func (c *Client) piece(up *upstream, f linkFile, src io.ReaderAt, off, size int64, last bool) error {
	b := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(src, off, size), b); err != nil {
		return fmt.Errorf("contents that wait to be sent: %w", err)
	}
	if !last && zero(b) {
		return nil // a hole there, as likely as not one here
	}
	for n := 0; n < len(b); {
		m, err := f.WriteAt(up.ctx, b[n:], off+int64(n))
		if err != nil {
			return err
		}
		if m == 0 {
			return io.ErrShortWrite
		}
		n += m
	}
	return nil
}
