package kml

import "sync/atomic"

// Stats is a snapshot of a log's counters since it was opened.
type Stats struct {
	Records     uint64 // appended
	Bytes       uint64 // appended, headers of segments included
	Batches     uint64 // Append calls that succeeded
	Syncs       uint64 // rounds of fdatasync
	Commits     uint64 // marks written
	CommitCalls uint64 // callers they served
	Segments    int    // there now
	Size        int64  // bytes there now
}

type counters struct {
	records, bytes, batches, syncs, commits, commitCalls atomic.Uint64
}

// Stats gives the counters.
func (l *Log) Stats() Stats {
	l.pub.Lock()
	n := len(l.segs)
	l.pub.Unlock()
	return Stats{
		Records:     l.stats.records.Load(),
		Bytes:       l.stats.bytes.Load(),
		Batches:     l.stats.batches.Load(),
		Syncs:       l.stats.syncs.Load(),
		Commits:     l.stats.commits.Load(),
		CommitCalls: l.stats.commitCalls.Load(),
		Segments:    n,
		Size:        l.Size(),
	}
}
