package cli

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/glob"
	"github.com/mezzofs/mezzo/kml/replay"
)

// dumpFlags are the flags of mezzo kml dump.
type dumpFlags struct {
	json     bool
	from, to string
	path     string
	ops      []string
}

func (a *app) kmlDumpCommand() *cobra.Command {
	var f dumpFlags
	c := &cobra.Command{
		Use:   "dump LOG",
		Short: "print the records of a log",
		RunE: func(cmd *cobra.Command, args []string) error {
			sel, err := f.selection()
			if err != nil {
				return err
			}
			return a.dump(cmd.Context(), args[0], sel, newRecordPrinter(a.env.Stdout, f.json))
		},
	}
	c.Flags().BoolVar(&f.json, "json", false, "print records as JSON objects")
	c.Flags().StringVar(&f.from, "from", "", "begin with the record at `POS`, or the first not before a time")
	c.Flags().StringVar(&f.to, "to", "", "end with the record at `POS`, or the last not after a time")
	c.Flags().StringVar(&f.path, "path", "", "only records about paths that match `GLOB`")
	c.Flags().StringSliceVar(&f.ops, "op", nil, "only records of operation `OP`; may be given several times")
	return c
}

// selection is which records are asked for.
type selection struct {
	from, to bound
	ops      map[kml.Op]bool
	glob     *glob.Glob
	names    replay.Names // kept only for glob
}

func (f *dumpFlags) selection() (*selection, error) {
	sel := &selection{}
	var err error
	if sel.from, err = parseBound(f.from); err != nil {
		return nil, err
	}
	if sel.to, err = parseBound(f.to); err != nil {
		return nil, err
	}
	if sel.ops, err = parseOps(f.ops); err != nil {
		return nil, err
	}
	if f.path != "" {
		g, err := glob.Parse(f.path)
		if err != nil {
			return nil, &usageError{err}
		}
		sel.glob = &g
	}
	return sel, nil
}

// wants says whether r is asked for. It is given every record in order.
func (s *selection) wants(r *kml.Record) bool {
	ok := s.glob == nil
	if s.glob != nil {
		for _, p := range s.names.Touched(r) {
			ok = ok || s.glob.Match(p)
		}
		s.names.Apply(r)
	}
	return ok && (len(s.ops) == 0 || s.ops[r.Op]) &&
		(s.from.none() || s.from.compare(r) >= 0) && (s.to.none() || s.to.compare(r) <= 0)
}

// over says that nothing after r is asked for. Times do not rise strictly along
// a log: records made offline bear the time when they were made.
func (s *selection) over(r *kml.Record) bool {
	return !s.to.none() && s.to.time.IsZero() && s.to.compare(r) >= 0
}

func (a *app) dump(ctx context.Context, arg string, sel *selection, out *recordPrinter) error {
	s, err := a.openLog(arg)
	if err != nil {
		return err
	}
	defer s.Close()
	for ctx.Err() == nil {
		r, err := s.NextRecord()
		if err == io.EOF {
			return out.Flush()
		}
		if err != nil {
			return errors.Join(out.Flush(), logProblem(arg, err))
		}
		if sel.wants(r) {
			if err := out.print(r); err != nil {
				return err
			}
		}
		if sel.over(r) {
			return out.Flush()
		}
	}
	return errors.Join(ctx.Err(), out.Flush())
}
