package p9srv

import (
	"encoding/binary"

	"github.com/mezzofs/mezzo/p9srv/wire"
)

// This file joins the Tfsync messages of a fid. A sync that begins now covers
// all that was written before, whoever asked: those that come while one is
// running wait for the next, which is one for all of them.

// joinable says that r is a Tfsync, and a proper one.
func (c *call) joinable() bool {
	return c.typ == wire.TypeTfsync && (len(c.body) == 4 || len(c.body) == 8)
}

// joins puts r where the fid's next sync finds it. It returns true when a worker
// has to be told. session.mu is held.
func (sl *slot) joins(r *request) bool {
	sl.syncs = append(sl.syncs, r)
	first := !sl.inSync
	sl.inSync = true
	return first
}

// runSyncs syncs for all messages that wait for it. s.mu is held, and let go
// meanwhile.
func (s *session) runSyncs(sl *slot) {
	all := sl.syncs
	sl.syncs = nil
	run := make([]*request, 0, len(all))
	for _, r := range all {
		r.started = true
		if !r.dropped && !s.muted {
			run = append(run, r)
		}
	}
	s.mu.Unlock()
	syncAll(run)
	for _, r := range all {
		r.cancel()
	}
	s.mu.Lock()
	if sl.inSync = len(sl.syncs) > 0; sl.inSync {
		// This worker, or one that is free earlier, goes on with them.
		s.runq = append(s.runq, sl.syncs[0])
	}
	for _, r := range all {
		s.over(r)
	}
	s.mu.Unlock()
	s.q.flush(true)
	s.mu.Lock()
}

// syncAll answers messages with one sync: the most thorough that is asked for.
// One that was flushed ends alone.
func syncAll(run []*request) {
	for _, r := range run {
		r.begin()
	}
	for len(run) > 0 {
		lead := 0
		for i, r := range run {
			if !r.dataOnly() {
				lead = i
				break
			}
		}
		r := run[lead]
		run[0], run[lead] = run[lead], run[0]
		err := r.invoke()
		r.finishAnswer(err)
		run = run[1:]
		if err != nil && r.Err() != nil {
			// What ended it was its own flush.
			continue
		}
		for _, r := range run {
			if err == nil {
				r.out = (&wire.Rfsync{}).Append(r.out, r.tag)
			}
			r.finishAnswer(err)
		}
		return
	}
}

// dataOnly says that a Tfsync asks for contents alone.
func (c *call) dataOnly() bool {
	return len(c.body) == 8 && binary.LittleEndian.Uint32(c.body[4:]) != 0
}
