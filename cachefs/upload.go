package cachefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
)

// Contents up to inlineMax bytes go in the stream of records, in front of their
// record. Larger ones are uploaded into the master's stage beside everything
// else, uploadFiles at a time, each by blocks of uploadBlock bytes of which the
// master has at most uploadAhead not answered: what it has of an upload that was
// cut is whole but for the last uploadAhead blocks.
const (
	inlineMax   = 64 << 10
	uploadBlock = 256 << 10
	uploadAhead = 4
	uploadFiles = 8
)

// upload is contents that are made ready to be sent, or on their way.
type upload struct {
	rec   *kml.Record
	began time.Time
}

// inline reports whether contents go with their record.
func inline(r *kml.Record) bool { return r.Attr.Size <= inlineMax }

// unread and unsent are what large contents miss.
func (s *sending) unread() bool { return s.large() && s.digest == nil && s.e.Seq() == 0 }
func (s *sending) unsent(up *upstream) bool {
	return s.large() && s.staged != up
}
func (s *sending) large() bool { return s.e.Data && !inline(s.e.Rec()) }

// ahead leaves out of a batch what has to wait for large contents that miss
// something, which begin to get it here.
func (c *Client) ahead(up *upstream, batch []*sending, misses func(*sending) bool) []*sending {
	p := &c.push
	p.mu.Lock()
	defer p.mu.Unlock()
	var held keySet
	waits := false
	var out []*sending
	for _, s := range batch {
		r := s.e.Rec()
		not := misses(s)
		if not {
			c.begin(up, s)
			waits = true
		}
		if not || waits && s.waited == 0 || held.holds(r) {
			held.add(r)
			p.again[s.e.ID] = true // looked at again in the next batch
			continue
		}
		out = append(out, s)
	}
	return out
}

// begin has large contents made ready: their digest first, which freezing the
// change needs, and then the upload. It ends with the link. The caller holds
// push.mu.
func (c *Client) begin(up *upstream, s *sending) {
	p := &c.push
	if p.upping[s.e.ID] != nil {
		return
	}
	if s.began.IsZero() {
		s.began = time.Now()
		time.AfterFunc(overtake+time.Millisecond, p.wake) // then others are let go
	}
	p.upping[s.e.ID] = &upload{rec: s.e.Rec(), began: s.began}
	need := s.unread()
	c.wg.Go(func() {
		var sum []byte
		var err error
		select {
		case p.slots <- struct{}{}:
			if need {
				sum, err = digest(c.cache.Local().Path(s.e.ID))
			} else {
				err = c.upload(up, s)
			}
			<-p.slots
		case <-up.ctx.Done():
			err = up.ctx.Err()
		}
		p.mu.Lock()
		delete(p.upping, s.e.ID)
		var errno syscall.Errno
		switch {
		case err == nil && need:
			s.digest = sum
		case err == nil:
			s.staged = up
		case errors.Is(err, os.ErrNotExist) && s.e.Gone():
			err = nil // taken out meanwhile
		case errors.As(err, &errno):
			c.refused(s, errno, err.Error())
			err = nil
		}
		p.again[s.e.ID] = true
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

// upload puts a store's bytes into the master's stage, from where an earlier
// link got to. That it is the same contents that are gone on with is what the
// record's digest is for.
func (c *Client) upload(up *upstream, s *sending) (err error) {
	src, err := os.Open(c.cache.Local().Path(s.e.ID))
	if errors.Is(err, os.ErrNotExist) {
		return nil // came back before, and was asked for again: the master knows it
	}
	if err != nil {
		return fmt.Errorf("contents that wait to be sent: %w", hide(err))
	}
	defer src.Close()
	r := s.e.Rec()
	name := fmt.Sprintf("%d-%d", r.Origin.Site, r.Origin.Seq)
	f, from, err := up.stage(name, int64(r.Attr.Size))
	if err != nil {
		return err
	}
	if from > 0 {
		c.log.Info("an upload goes on", "oid", r.OID, "bytes", from, "of", r.Attr.Size)
	}
	defer func() {
		err = errors.Join(err, f.Close())
		var errno syscall.Errno
		if !errors.As(err, &errno) {
			return
		}
		// What has got there does not take room from others meanwhile.
		if f, e := up.calls.Create(up.ctx, unix.O_WRONLY|unix.O_TRUNC, "stage", name); e == nil {
			err = errors.Join(err, f.Close())
		}
	}()
	fault.Point("upload.begun")
	return up.blocks(f, src, from, int64(r.Attr.Size))
}

// stage opens an upload, and says from where on its bytes are needed.
func (u *upstream) stage(name string, size int64) (f linkFile, from int64, err error) {
	f, err = u.calls.Open(u.ctx, unix.O_WRONLY, "stage", name)
	if errors.Is(err, syscall.ENOENT) {
		f, err = u.calls.Create(u.ctx, unix.O_WRONLY, "stage", name)
		return f, 0, err
	}
	if err != nil {
		return nil, 0, err
	}
	has, _, err := f.Stat(u.ctx)
	if err == nil && has <= uint64(size) {
		// The last block it has, and those that were on their way with it, may
		// have gaps.
		return f, max(0, (int64(has)-1)/uploadBlock-(uploadAhead-1)) * uploadBlock, nil
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		f, err = u.calls.Create(u.ctx, unix.O_WRONLY|unix.O_TRUNC, "stage", name)
	}
	return f, 0, err
}

// blocks sends the contents behind an offset, in order: a block begins when the
// one uploadAhead before it is answered.
func (u *upstream) blocks(f linkFile, src io.ReaderAt, from, size int64) error {
	ctx, cancel := context.WithCancel(u.ctx)
	var flight []chan error
	wait := func() error {
		done := flight[0]
		flight = flight[1:]
		return <-done
	}
	var err error
	for off := from; off < size && err == nil; off += uploadBlock {
		b := make([]byte, min(uploadBlock, size-off))
		if _, err = io.ReadFull(io.NewSectionReader(src, off, int64(len(b))), b); err != nil {
			err = fmt.Errorf("contents that wait to be sent: %w", hide(err))
			break
		}
		if off+int64(len(b)) < size && zero(b) {
			continue // a hole there, as likely as not one here
		}
		if len(flight) == uploadAhead {
			if err = wait(); err != nil {
				break
			}
		}
		done := make(chan error, 1)
		flight = append(flight, done)
		go func() { done <- u.pace.write(ctx, f, b, off, false) }() // ends below
	}
	if err != nil {
		cancel()
	}
	for len(flight) > 0 {
		if e := wait(); err == nil && e != nil {
			err = e
			cancel() // the rest is not needed
		}
	}
	cancel()
	return err
}
