package p9srv

import "sync/atomic"

// Stats is what a Server has done since it was made. Counts of running
// connections are added when they pause.
type Stats struct {
	Connections uint64 // accepted so far
	Open        int64  // connections now
	FIDs        int64  // fids now
	Requests    uint64 // messages received
	InPlace     uint64 // of them answered on the connection's own goroutine
	Errors      uint64 // Rlerror answers
	Flushes     uint64 // Tflush received
	Panics      uint64 // caught in Files
	BytesIn     uint64
	BytesOut    uint64
	Reads       uint64 // reads from connections; Requests/Reads is the batch
	Writes      uint64 // writes to connections
}

type counters struct {
	connections, requests, inPlace, errors, flushes, panics atomic.Uint64
	bytesIn, bytesOut, reads, writes                        atomic.Uint64
	open, fids                                              atomic.Int64
}

// Stats returns the counts so far. It may be called at any time.
func (s *Server) Stats() Stats {
	c := &s.count
	return Stats{
		Connections: c.connections.Load(), Open: c.open.Load(), FIDs: c.fids.Load(),
		Requests: c.requests.Load(), InPlace: c.inPlace.Load(), Errors: c.errors.Load(),
		Flushes: c.flushes.Load(), Panics: c.panics.Load(),
		BytesIn: c.bytesIn.Load(), BytesOut: c.bytesOut.Load(), Reads: c.reads.Load(), Writes: c.writes.Load(),
	}
}
