package kml

import (
	"context"
	"errors"
	"io"
)

// Report is what Verify found.
type Report struct {
	Fileset  [16]byte
	Start    Position // before the oldest record
	End      Position // the last record
	CRC      uint32   // the chain's there
	EpochID  [16]byte // of End
	Durable  Position // what the last mark says is durable
	Mark     Position // the last mark that says so
	Records  int64
	Bytes    int64 // of records
	Segments int
	Damage   []*Damage // in the order of the log
}

// maxDamage is how many places Verify lists; a log with more is no log.
const maxDamage = 10000

// Verify reads every record that s gives, all of its body included, and reports
// every damage with its place. The error is of reading: ctx's, the system's, or
// ErrNewer; the report holds what came before it. Memory does not grow with the
// log.
func Verify(ctx context.Context, s *Scanner) (*Report, error) {
	rep := &Report{}
	err := verify(ctx, s, rep)
	rep.Fileset, rep.EpochID = s.Fileset(), s.EpochID()
	rep.Start, _ = s.Start()
	rep.End, rep.CRC = s.Pos()
	rep.Durable, rep.Mark = s.Durable()
	rep.Segments = s.segments
	return rep, err
}

func verify(ctx context.Context, s *Scanner, rep *Report) error {
	var body *Damage // in a record that is whole, while nothing good came behind it
	for n := 0; len(rep.Damage) < maxDamage; n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		before, crc := s.Pos()
		w, err := s.Next()
		var d *Damage
		switch {
		case err == io.EOF:
			return nil
		case errors.As(err, &d):
			rep.Damage = append(rep.Damage, d)
			continue
		case err != nil:
			return err
		}
		_, err = w.Record()
		name, off := s.Where()
		if errors.Is(err, ErrCorrupt) {
			d := &Damage{Segment: name, Offset: off, Bytes: int64(len(w.Bytes)), After: before, CRC: crc, Err: err}
			rep.Damage = append(rep.Damage, d)
			body = d
			continue
		}
		if err != nil {
			return &Damage{Segment: name, Offset: off, After: before, CRC: crc, Err: err}
		}
		if body != nil {
			body.Next, body = w.Pos, nil
		}
		rep.Records++
		rep.Bytes += int64(len(w.Bytes))
	}
	return nil
}
