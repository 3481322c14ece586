package export

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"syscall"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/tree"
)

// reintSession is what a site may apply records through: the newest one of it.
type reintSession struct {
	h     *reintHandle
	site  kml.SiteID
	key   []byte // hash of what Welcome gave
	used  bool   // the client has shown that it kept the key
	ended chan struct{}
	// bad says why contents that came in the stream could not be kept.
	bad map[uint64]error
}

// serve ends with an error, whatever ends it.
func (s *reintSession) serve() error {
	m, err := s.h.next()
	if err != nil {
		return err
	}
	hello, ok := m.(*feed.Hello)
	if !ok {
		return fmt.Errorf("session begins with %T, not with hello: %w", m, feed.ErrFrame)
	}
	if err := s.welcome(hello); err != nil {
		return err
	}
	for {
		m, err := s.h.next()
		if err != nil {
			return err
		}
		if small, ok := m.(*feed.Contents); ok {
			s.keep(small)
			continue
		}
		batch, ok := m.(*feed.Batch)
		if !ok {
			return fmt.Errorf("%T where a batch is due: %w", m, feed.ErrFrame)
		}
		if err := s.confirm(); err != nil {
			return err
		}
		res, err := s.apply(batch)
		if err != nil {
			return err
		}
		if err := s.h.answer(res); err != nil {
			return err
		}
	}
}

// keep puts contents that came in the stream into the stage. Its record hears
// what is wrong.
func (s *reintSession) keep(c *feed.Contents) {
	err := error(syscall.EINVAL)
	if c.Seq > 0 && len(c.Data) <= feed.MaxInline {
		err = s.h.j.stage.put(upload{s.site, c.Seq}, c.Data)
	}
	switch {
	case err == nil:
		delete(s.bad, c.Seq)
	case len(s.bad) < maxBad:
		if s.bad == nil {
			s.bad = make(map[uint64]error)
		}
		s.bad[c.Seq] = err
	}
}

// maxBad bounds the reasons that are kept for records that may never come; those
// beyond it find nothing in the stage.
const maxBad = 1 << 12

// newKey is a secret for a client and the hash of it that the master keeps.
func newKey() (secret string, hash []byte) {
	var b [32]byte
	rand.Read(b[:])
	secret = hex.EncodeToString(b[:])
	return secret, hashKey(secret)
}

func hashKey(secret string) []byte {
	h := sha256.Sum256([]byte(secret))
	return h[:]
}

// welcome finds out which site the client is, ends that site's older session, and
// answers.
func (s *reintSession) welcome(hello *feed.Hello) error {
	h, t := s.h, s.h.j.t
	if hello.Version != feed.Version {
		return fmt.Errorf("version %d of the protocol is spoken here, not %d: %w", feed.Version, hello.Version, kml.ErrNewer)
	}
	site, known := t.Site(hello.Site)
	if known && site.UID != h.id.UID {
		return fmt.Errorf("site %d belongs to user %d: %w", site.ID, site.UID, syscall.EACCES)
	}
	shown := hashKey(hello.Key)
	secret, hash := newKey()
	s.key = hash
	var err error
	again := known && site.Knows(shown)
	if again {
		if err = s.enter(site.ID); err != nil {
			return err
		}
		// The session before may have shown meanwhile that this key is an old one.
		if site, _ = t.Site(site.ID); site.Knows(shown) {
			err = t.SetSiteKeys(site.ID, hash, shown)
		} else {
			s.exit()
			again = false
		}
	}
	if !again {
		// A copy of the site, or a backup, or new: it gets a number of its own.
		if site, err = t.Enrol(hello.Host, h.id.UID, hash); err == nil {
			h.j.log.Info("site enrolled", "site", site.ID, "host", hello.Host, "uid", h.id.UID, "peer", h.id.Peer)
			err = s.enter(site.ID)
		}
	}
	if err != nil {
		return err
	}
	h.j.stage.fence(site.ID)
	if site.ID == hello.Site {
		h.j.stage.acknowledged(site.ID, hello.Known)
		if err := t.Forget(site.ID, hello.Known); err != nil {
			return err
		}
	}
	h.client.is(site.ID, hello.Host)
	return h.answer(&feed.Welcome{
		Version: feed.Version, Site: site.ID, Key: secret,
		LastSeq: site.LastSeq, MaxCounter: site.MaxCounter, Position: t.Log().End(),
	})
}

// enter makes s the session of its site, after the one before has ended.
func (s *reintSession) enter(site kml.SiteID) error {
	s.site = site
	j := s.h.j
	for {
		j.smu.Lock()
		old := j.sites[site]
		if old == nil {
			j.sites[site] = s
			j.smu.Unlock()
			return nil
		}
		j.smu.Unlock()
		old.h.cancel(errReplaced)
		select {
		case <-old.ended:
		case <-s.h.ctx.Done():
			return context.Cause(s.h.ctx)
		}
	}
}

// exit gives the site's place up.
func (s *reintSession) exit() {
	j := s.h.j
	j.smu.Lock()
	defer j.smu.Unlock()
	if j.sites[s.site] == s {
		delete(j.sites, s.site)
	}
}

// leave ends the session.
func (s *reintSession) leave() {
	s.exit()
	close(s.ended)
}

// confirm makes the session's key the only good one: the client uses it, so it
// has kept it.
func (s *reintSession) confirm() error {
	if s.used {
		return nil
	}
	s.used = true
	return s.h.j.t.SetSiteKeys(s.site, s.key, nil)
}

// apply applies the records of a batch in order. Each is decided by itself; a
// session that ends in the middle leaves the rest to the next.
func (s *reintSession) apply(b *feed.Batch) (*feed.Result, error) {
	said := 0
	res := &feed.Result{ID: b.ID, Outcomes: make([]feed.Outcome, 0, len(b.Records))}
	for _, r := range b.Records {
		if s.h.ctx.Err() != nil {
			return nil, context.Cause(s.h.ctx)
		}
		o, err := s.let(r)
		if err != nil {
			return nil, err
		}
		if said += len(o.Reason); said > maxReasons {
			o.Reason = ""
		}
		res.Outcomes = append(res.Outcomes, o)
	}
	return res, nil
}

// maxReason is how much of a reason is sent, maxReasons of all in one result, so
// that the largest batch's result fits into a frame. In bytes.
const (
	maxReason  = 512
	maxReasons = feed.MaxPayload / 2
)

// let decides one record, when no lease of another client is in its way.
func (s *reintSession) let(r *kml.Record) (feed.Outcome, error) {
	l := s.h.j.leases
	leave, err := l.enter(s.h.ctx, s.site, touchOf(r))
	if err != nil {
		return feed.Outcome{}, err
	}
	defer leave()
	undo := l.inherit(s.site, r)
	o := s.one(r)
	if o.Status != feed.Applied && o.Status != feed.Duplicate {
		undo()
	}
	return o, nil
}

// one decides one record. It is not interrupted: what has begun is finished.
func (s *reintSession) one(r *kml.Record) feed.Outcome {
	o := feed.Outcome{Seq: r.Origin.Seq}
	refuse := func(err error) feed.Outcome {
		errno := syscall.EINVAL
		errors.As(err, &errno)
		o.Status, o.Errno, o.Reason = feed.Refused, uint32(errno), err.Error()
		return o
	}
	if err := checkRecord(r, s.site, s.h.j.t.Minted); err != nil {
		return refuse(err)
	}
	u, path := upload{s.site, r.Origin.Seq}, ""
	if r.Op == kml.OpStore {
		if err := s.bad[r.Origin.Seq]; err != nil {
			delete(s.bad, r.Origin.Seq)
			return refuse(fmt.Errorf("contents not kept: %w", err))
		}
		var err error
		if path, err = s.h.j.stage.take(u); err != nil {
			return refuse(err)
		}
	}
	ctx := context.WithoutCancel(s.h.ctx)
	d := s.h.j.t.Reintegrate(ctx, s.h.cred, r, path)
	o.Pos, o.Errno, o.Reason = d.Pos, uint32(d.Errno), d.Reason[:min(len(d.Reason), maxReason)]
	switch d.Status {
	case tree.ReintApplied:
		o.Status = feed.Applied
	case tree.ReintDuplicate:
		o.Status = feed.Duplicate
	case tree.ReintConflict:
		o.Status = feed.Conflict
	default:
		o.Status = feed.Refused
	}
	if o.Status == feed.Applied || o.Status == feed.Duplicate {
		if err := s.h.j.stage.remove(u); err != nil && !errors.Is(err, syscall.ENOENT) {
			s.h.j.log.Warn("upload not removed; it is when the site acknowledges", "path", s.h.j.stage.path(u), "err", err)
		}
	}
	return o
}
