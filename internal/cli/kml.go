package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mezzofs/mezzo/kml"
)

func (a *app) kmlCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "kml COMMAND",
		Short: "work with a log: dump, check, diff, replay, mark, truncate",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("%q is not a command of mezzo kml", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for _, sub := range []*cobra.Command{a.kmlDumpCommand(), a.kmlCheckCommand(), a.kmlDiffCommand(), a.kmlReplayCommand(),
		a.kmlMarkCommand(), a.kmlTruncateCommand()} {
		sub.Args = wants(sub.Use)
		sub.DisableFlagsInUseLine = true
		c.AddCommand(sub)
	}
	return c
}

// openLog scans the log that arg names: a folder of segments, the folder or the
// mount of a fileset, a file with the bytes of a log, or - for standard input.
func (a *app) openLog(arg string) (*kml.Scanner, error) {
	if arg == "-" {
		return kml.NewScanner("standard input", a.env.Stdin), nil
	}
	st, err := os.Stat(arg)
	if err != nil {
		return nil, pathProblem(arg, err)
	}
	path := arg
	if st.IsDir() {
		if in := filepath.Join(arg, stateDir, "kml"); exists(in) {
			path = in
		}
	}
	s, err := kml.OpenScanner(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, &problem{Thing: arg, Err: errors.New("has no log"),
			Remedy: "name a fileset, its .mezzo/kml, or a file with a log's bytes"}
	}
	if err != nil {
		return nil, pathProblem(arg, err)
	}
	return s, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// logProblem is an error of reading the log arg.
func logProblem(arg string, err error) error {
	p := &problem{Thing: arg, Err: err}
	if d := (*kml.Damage)(nil); errors.As(err, &d) {
		p = &problem{Thing: d.Segment, Err: fmt.Errorf("offset %d, after position %s: %w", d.Offset, d.After, d.Err),
			Remedy: "mezzo kml check tells how much is damaged; what comes before is whole"}
	}
	return p
}

// bound is where a part of a log begins or ends: a position, a record number or
// a time. The zero value is no bound.
type bound struct {
	pos   kml.Position
	recno uint64
	time  time.Time
}

// boundForms are the forms of a bound's time, the last two in local time.
func boundForms() []string { return []string{time.RFC3339Nano, "2006-01-02 15:04:05", "2006-01-02"} }

func parseBound(s string) (bound, error) {
	if s == "" {
		return bound{}, nil
	}
	if n, err := strconv.ParseUint(s, 10, 48); err == nil && n > 0 {
		return bound{recno: n}, nil
	}
	if p, err := kml.ParsePosition(s); err == nil && p != 0 {
		return bound{pos: p}, nil
	}
	for _, form := range boundForms() {
		if t, err := time.ParseInLocation(form, s, time.Local); err == nil {
			return bound{time: t}, nil
		}
	}
	return bound{}, usagef("%q is no position (EPOCH.RECNO), record number or time (such as 2026-11-21 09:30:00)", s)
}

// compare is where r lies: -1 before b, 0 at it, 1 behind it.
func (b bound) compare(r *kml.Record) int {
	at, to := uint64(r.Pos), uint64(b.pos)
	switch {
	case b.recno != 0:
		at, to = r.Pos.Recno(), b.recno
	case !b.time.IsZero():
		return time.Unix(0, r.Time).Compare(b.time)
	}
	switch {
	case at < to:
		return -1
	case at > to:
		return 1
	}
	return 0
}

// none says that b bounds nothing.
func (b bound) none() bool { return b == bound{} }

// parseOps reads names of operations, commas between them.
func parseOps(names []string) (map[kml.Op]bool, error) {
	known := map[string]kml.Op{}
	var list []string
	for op := kml.OpCreate; op <= kml.OpMark; op++ {
		known[op.String()] = op
		list = append(list, op.String())
	}
	ops := map[kml.Op]bool{}
	for _, n := range names {
		op, ok := known[n]
		if !ok {
			return nil, usagef("%q is no operation; there are %s", n, strings.Join(list, ", "))
		}
		ops[op] = true
	}
	return ops, nil
}
