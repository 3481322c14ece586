package cli

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"github.com/mezzofs/mezzo/kml"
)

func (a *app) kmlDiffCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "diff A B",
		Short: "tell where the histories of two logs part",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.diffLogs(cmd.Context(), args[0], args[1])
		},
	}
}

// history is one log on the way through both.
type history struct {
	arg  string
	s    *kml.Scanner
	pos  kml.Position
	crc  uint32
	next *kml.Record // the first behind the place where they part
	over bool
	left int64 // how many records are behind that place, next included
}

// step goes on by one record; at the end over is set.
func (h *history) step() error {
	r, err := h.s.NextRecord()
	if err == io.EOF {
		h.over = true
		return nil
	}
	if err != nil {
		return logProblem(h.arg, err)
	}
	h.next = r
	h.pos, h.crc = h.s.Pos()
	return nil
}

// count reads to the end, once the next record stands in h.
func (h *history) count(ctx context.Context) error {
	for !h.over {
		if h.left%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		h.left++
		first := h.next
		err := h.step()
		if h.next = first; err != nil {
			return err
		}
	}
	return nil
}

func (a *app) diffLogs(ctx context.Context, argA, argB string) error {
	var hs [2]*history
	for i, arg := range []string{argA, argB} {
		s, err := a.openLog(arg)
		if err != nil {
			return err
		}
		defer s.Close()
		hs[i] = &history{arg: arg, s: s}
		if err := hs[i].step(); err != nil {
			return err
		}
	}
	x, y := hs[0], hs[1]
	if x.s.Fileset() != y.s.Fileset() {
		a.out("these are logs of two filesets, %s and %s\n", uuidText(x.s.Fileset()), uuidText(y.s.Fileset()))
		return errSilent{exitFailed}
	}
	at, crc, err := part(ctx, x, y)
	switch {
	case errors.Is(err, errNothingShared):
		a.out("they have no position in common: one ends before the other begins, after %s\n", max(startOf(x), startOf(y)))
		return errSilent{exitFailed}
	case errors.Is(err, errPartedBefore):
		a.out("they part before %s, where one of them begins\n", max(startOf(x), startOf(y)))
		return errSilent{exitFailed}
	}
	if err != nil {
		return err
	}
	if err := errors.Join(x.count(ctx), y.count(ctx)); err != nil {
		return err
	}
	switch {
	case x.left == 0 && y.left == 0:
		a.out("they are the same up to %s, CRC %08x, where both end\n", at, crc)
		return nil
	case x.left == 0:
		a.out("they are the same up to %s, CRC %08x, where %s ends; %s goes on\n", at, crc, shellQuote(x.arg), shellQuote(y.arg))
	case y.left == 0:
		a.out("they are the same up to %s, CRC %08x, where %s ends; %s goes on\n", at, crc, shellQuote(y.arg), shellQuote(x.arg))
	default:
		a.out("they part after %s, CRC %08x\n", at, crc)
	}
	for _, h := range hs {
		if h.left > 0 {
			a.out("%s: %s behind it, up to %s, CRC %08x; the first is\n  %s\n", shellQuote(h.arg), plural(h.left, "record"),
				h.pos, h.crc, kml.AppendText(nil, h.next))
		}
	}
	if x.left > 0 && y.left > 0 {
		return errSilent{exitFailed}
	}
	return nil
}

// Why two logs cannot be compared.
var (
	errNothingShared = errors.New("no position in common")
	errPartedBefore  = errors.New("parted before one of them begins")
)

func startOf(h *history) kml.Position {
	p, _ := h.s.Start()
	return p
}

// part goes along both logs and gives the last position that is the same in
// both. Each then stands on its first record behind that, or is over.
func part(ctx context.Context, x, y *history) (at kml.Position, crc uint32, err error) {
	if startOf(x) > startOf(y) {
		x, y = y, x
	}
	// y begins later, or retention left less of it: x is read up to there.
	at, crc = y.s.Start()
	have, haveCRC := x.s.Start()
	for have.Recno() < at.Recno() && !x.over {
		have, haveCRC = x.pos, x.crc
		if err := x.step(); err != nil {
			return 0, 0, err
		}
	}
	if have == at && haveCRC != crc {
		return 0, 0, errPartedBefore
	}
	if have != at {
		return 0, 0, errNothingShared
	}
	for n := 0; !x.over && !y.over && x.pos == y.pos && x.crc == y.crc; n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			return 0, 0, ctx.Err()
		}
		at, crc = x.pos, x.crc
		if err := errors.Join(x.step(), y.step()); err != nil {
			return 0, 0, err
		}
	}
	return at, crc, nil
}
