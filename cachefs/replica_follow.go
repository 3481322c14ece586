package cachefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/tree"
)

// applyBatch bounds how many records, and about how many bytes of contents, are
// applied between two looks at the feed.
const (
	applyBatch = 512
	applyBytes = 4 << 20
)

// follow applies what the feed brings until the link ends, and says why it did.
func (r *Replica) follow(ctx context.Context, up *upstream) error {
	for {
		step, cancel := context.WithTimeout(up.ctx, r.o.Dead)
		m, err := up.feed.next(step)
		quiet := step.Err() != nil && up.ctx.Err() == nil
		cancel()
		if quiet && err != nil {
			return fmt.Errorf("nothing was heard for %v", r.o.Dead)
		}
		var batch []tree.Arrival
		size := 0
		for err == nil && m != nil {
			switch m := m.(type) {
			case *feed.Record:
				batch = append(batch, tree.Arrival{Record: m.Record})
			case *feed.RecordData:
				batch = append(batch, tree.Arrival{Record: m.Record, Data: m.Data})
				size += len(m.Data)
			case *feed.Heartbeat:
				r.heard(m.End)
			case *feed.Changing:
			case *feed.Damaged:
				up.offers.add(*m)
			case *feed.Failure:
				err = m
			default:
				err = unexpected(m, "a record")
			}
			if err != nil || len(batch) >= applyBatch || size >= applyBytes {
				break
			}
			m, err = up.feed.ready()
		}
		if len(batch) > 0 {
			if e := r.apply(ctx, batch); e != nil {
				return e
			}
		}
		if err != nil {
			return err
		}
		r.caughtUp(up)
	}
}

// apply brings the directory over a batch. A disk that is full is waited for:
// nothing that was applied is lost, and the rest stays at the master.
func (r *Replica) apply(ctx context.Context, batch []tree.Arrival) error {
	r.heard(batch[len(batch)-1].Record.Pos)
	for {
		err := r.tree.Apply(ctx, batch)
		if err == nil || !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
			return err
		}
		r.mu.Lock()
		first := r.why == nil
		r.why = fmt.Errorf("%w; make room: it goes on by itself", err)
		r.signal()
		r.mu.Unlock()
		if first {
			r.log.Error("no room for the log; following waits for it", "fileset", r.o.Dir, "err", err)
		}
		if !wait(ctx, time.Second) {
			return ctx.Err()
		}
	}
}

func (r *Replica) heard(end kml.Position) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.end = max(r.end, end)
}

// caughtUp notes that the replica has applied what the master had when the link
// began.
func (r *Replica) caughtUp(up *upstream) {
	at, _ := r.tree.Cursor()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.why = nil
	if r.state == CatchingUp && at >= up.greet.End {
		r.state = Connected
		r.tree.Certain()
		r.log.Info("caught up with the master", "addr", r.o.Addr)
	}
	r.signal()
}

// copy brings the directory to a snapshot of the master's tree.
func (r *Replica) copy(ctx context.Context, up *upstream) error {
	r.mu.Lock()
	r.copying, r.state = true, CatchingUp
	r.signal()
	r.mu.Unlock()
	ctx, stop := up.bind(ctx)
	defer stop()
	f, err := up.open(ctx, up.streams, unix.O_RDWR, "snapshot")
	if err != nil {
		return explain(r.o.Addr, err)
	}
	s := &stream{f: f}
	defer s.close()
	q := feed.SnapshotRequest{OID: kml.RootOID, Depth: -1, Inline: r.o.Inline}
	if err := s.write(ctx, []byte(q.String())); err != nil {
		return err
	}
	m, err := s.next(ctx)
	if err != nil {
		return err
	}
	begin, ok := m.(*feed.SnapBegin)
	if !ok {
		return explain(r.o.Addr, unexpected(m, "a snapshot"))
	}
	c, err := r.copyLog(ctx, up, begin.Position)
	if err != nil {
		return err
	}
	if err := r.copyEntries(ctx, s, c); err != nil {
		return err
	}
	return c.End()
}

// copyEntries takes the snapshot's entries as they come. Reading is ahead of
// taking.
func (r *Replica) copyEntries(ctx context.Context, s *stream, c *tree.Copy) error {
	ctx, stop := context.WithCancel(ctx)
	type piece struct {
		m   feed.Message
		err error
	}
	pieces := make(chan piece, 256)
	done := make(chan struct{})
	go func() { // ends with this call, which waits for it
		defer close(done)
		defer close(pieces)
		for {
			step, cancel := context.WithTimeout(ctx, callTime)
			m, err := s.next(step)
			cancel()
			select {
			case pieces <- piece{m, err}:
			case <-ctx.Done():
				return
			}
			if _, end := m.(*feed.SnapEnd); err != nil || end {
				return
			}
		}
	}()
	defer func() {
		stop()
		<-done
	}()
	count := uint64(0)
	for p := range pieces {
		if p.err != nil {
			return p.err
		}
		var e tree.CopyEntry
		switch m := p.m.(type) {
		case *feed.Entry:
			e.SnapshotEntry = tree.SnapshotEntry{Record: m.Record, Version: m.Version, DataVersion: m.DataVersion}
		case *feed.EntryData:
			e.SnapshotEntry = tree.SnapshotEntry{Record: m.Record, Version: m.Version, DataVersion: m.DataVersion}
			e.Data = m.Data
		case *feed.SnapEnd:
			if m.Count != count {
				return fmt.Errorf("snapshot has %d entries of %d: %w", count, m.Count, feed.ErrFrame)
			}
			return nil
		default:
			return unexpected(p.m, "an entry")
		}
		count++
		if err := c.Take(&e); err != nil {
			return err
		}
		r.progress.entries.Add(1)
		if e.Record.Op == kml.OpCreate {
			r.progress.files.Add(1)
			r.progress.bytes.Add(int64(len(e.Data)))
		}
	}
	return ctx.Err()
}

// copyLog begins this replica's log with a segment of the master's, as it is
// there, and takes it up to the snapshot's position.
func (r *Replica) copyLog(ctx context.Context, up *upstream, pos kml.Position) (*tree.Copy, error) {
	f, err := up.open(ctx, up.calls, unix.O_RDONLY, "kml")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, _, err := f.Stat(ctx)
	if err != nil {
		return nil, err
	}
	at, head, err := findHead(ctx, f, int64(size), pos)
	if err != nil {
		return nil, err
	}
	h, err := kml.ParseHead(head)
	if err != nil {
		return nil, err
	}
	c, err := r.tree.BeginCopy(pos, head)
	if err != nil {
		return nil, err
	}
	crc, done := h.CRC, h.After >= pos
	buf := make([]byte, 0, 2<<20)
	for off := at + kml.HeadLen; !done; {
		n, err := f.ReadAt(ctx, buf[len(buf):min(cap(buf), len(buf)+1<<20)], off)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, fmt.Errorf("log ends before %s: %w", pos, io.ErrUnexpectedEOF)
		}
		off += int64(n)
		buf = buf[:len(buf)+n]
		var recs []*kml.Record
		used := 0
		for {
			b := buf[used:]
			if _, err := kml.ParseHead(b); err == nil {
				used += kml.HeadLen // the next segment
				continue
			}
			rec, n, next, err := kml.ParseRecord(b, crc)
			if errors.Is(err, kml.ErrShort) || err != nil && len(b) < kml.HeadLen {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("log of the master behind %s: %w", h.After, err)
			}
			recs, used, crc = append(recs, rec), used+n, next
		}
		buf = buf[:copy(buf, buf[used:])]
		if done, err = c.Log(recs); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// findHead looks for the last segment of the master's log that begins before a
// position.
func findHead(ctx context.Context, f linkFile, size int64, pos kml.Position) (at int64, head []byte, err error) {
	const window = 1 << 20
	for end := size; end > 0; {
		from := max(0, end-window) &^ 7
		b := make([]byte, min(end+kml.HeadLen, size)-from)
		n, err := f.ReadAt(ctx, b, from)
		if err != nil {
			return 0, nil, err
		}
		b = b[:n]
		for i := kml.FindHead(b); i >= 0; i = kml.FindHead(b[:i+kml.HeadLen-8]) {
			h, err := kml.ParseHead(b[i:])
			if err == nil && h.After <= pos {
				return from + int64(i), b[i : i+kml.HeadLen], nil
			}
			if i == 0 {
				break
			}
		}
		end = from
	}
	return 0, nil, fmt.Errorf("log of the master has no segment that begins before %s: %w", pos, kml.ErrTruncated)
}
