package cli

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/mezzofs/mezzo/kml"
)

func (a *app) kmlCheckCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "check LOG",
		Short: "read all of a log and tell what is damaged",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.checkLog(cmd.Context(), args[0], asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	return c
}

func (a *app) checkLog(ctx context.Context, arg string, asJSON bool) error {
	s, err := a.openLog(arg)
	if err != nil {
		return err
	}
	defer s.Close()
	rep, err := kml.Verify(ctx, s)
	torn := 0
	for _, d := range rep.Damage {
		if d.Torn() {
			torn++
		}
	}
	if asJSON {
		if jerr := a.printReport(rep); jerr != nil {
			return jerr
		}
	} else {
		a.tellReport(arg, rep)
	}
	if err != nil {
		return logProblem(arg, err)
	}
	if n := len(rep.Damage) - torn; n > 0 {
		return &problem{Thing: arg, Err: fmt.Errorf("is damaged in %s", plural(int64(n), "place")),
			Remedy: "restore the segments from a full replica or a backup"}
	}
	return nil
}

func (a *app) tellReport(arg string, rep *kml.Report) {
	a.out("%s: %s in %s, %d bytes, after %s up to %s, CRC %08x\n", shellQuote(arg),
		plural(rep.Records, "record"), plural(int64(rep.Segments), "segment"), rep.Bytes, rep.Start, rep.End, rep.CRC)
	a.out("fileset %s, epoch %d with id %x\n", uuidText(rep.Fileset), rep.End.Epoch(), rep.EpochID)
	if rep.Mark != 0 {
		a.out("durable up to %s, as the mark at %s says\n", rep.Durable, rep.Mark)
	}
	for _, d := range rep.Damage {
		what := "damage"
		if d.Torn() {
			what = "unfinished record at the end"
		}
		a.out("%s: %s offset %d, %d bytes, after position %s with CRC %08x: %v\n", what, shellQuote(d.Segment), d.Offset,
			d.Bytes, d.After, d.CRC, d.Err)
		switch {
		case d.Torn():
			a.out("  what precedes it is whole; the next start of its master cuts it\n")
		case d.Mark != 0:
			a.out("  it was durable, as the mark at %s says\n", d.Mark)
		default:
			a.out("  no mark behind it says that it was durable\n")
		}
		if d.Next != 0 {
			a.out("  records can be read again from %s on\n", d.Next)
		} else if !d.Torn() {
			a.out("  no record behind it can be read\n")
		}
	}
}

// uuidText is a fileset's identity as status shows it.
func uuidText(u [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// jsonDamage is one place in the output of check --json.
type jsonDamage struct {
	Segment string        `json:"segment"`
	Offset  int64         `json:"offset"`
	Bytes   int64         `json:"bytes"`
	After   kml.Position  `json:"after"`
	CRC     string        `json:"crc"`
	Next    *kml.Position `json:"next,omitempty"`
	Mark    *kml.Position `json:"mark,omitempty"`
	Torn    bool          `json:"torn"`
	Err     string        `json:"error"`
}

func (a *app) printReport(rep *kml.Report) error {
	list := []jsonDamage{}
	at := func(p kml.Position) *kml.Position {
		if p == 0 {
			return nil
		}
		return &p
	}
	for _, d := range rep.Damage {
		list = append(list, jsonDamage{d.Segment, d.Offset, d.Bytes, d.After, fmt.Sprintf("%08x", d.CRC), at(d.Next), at(d.Mark),
			d.Torn(), d.Err.Error()})
	}
	return json.NewEncoder(a.env.Stdout).Encode(struct {
		Fileset  string       `json:"fileset"`
		Start    kml.Position `json:"start"`
		End      kml.Position `json:"end"`
		CRC      string       `json:"crc"`
		EpochID  string       `json:"epoch_id"`
		Durable  kml.Position `json:"durable"`
		Mark     kml.Position `json:"mark"`
		Records  int64        `json:"records"`
		Bytes    int64        `json:"bytes"`
		Segments int          `json:"segments"`
		Damage   []jsonDamage `json:"damage"`
	}{uuidText(rep.Fileset), rep.Start, rep.End, fmt.Sprintf("%08x", rep.CRC), fmt.Sprintf("%x", rep.EpochID),
		rep.Durable, rep.Mark, rep.Records, rep.Bytes, rep.Segments, list})
}
