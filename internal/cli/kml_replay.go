package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/replay"
)

// replayFlags are the flags of mezzo kml replay.
type replayFlags struct {
	to       string
	contents string
	dryRun   bool
}

func (a *app) kmlReplayCommand() *cobra.Command {
	var f replayFlags
	c := &cobra.Command{
		Use:   "replay LOG DIR",
		Short: "make a plain folder what a log says",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.replay(cmd.Context(), args[0], args[1], f)
		},
	}
	c.Flags().StringVar(&f.to, "to", "", "end with the record at `POS`, or before the first one later than a time")
	c.Flags().StringVar(&f.contents, "contents", "", "copy contents from the tree in `FROM`, where they fit")
	c.Flags().BoolVar(&f.dryRun, "dry-run", false, "change nothing, print the records that would be applied")
	return c
}

func (a *app) replay(ctx context.Context, arg, dir string, f replayFlags) error {
	to, err := parseBound(f.to)
	if err != nil {
		return err
	}
	if made, err := isFileset(dir); err == nil && made {
		return &problem{Thing: dir, Err: errors.New("is a fileset"), Remedy: "replay into a folder of its own"}
	}
	if f.contents != "" {
		if err := checkFolder(f.contents); err != nil {
			return err
		}
	}
	s, err := a.openLog(arg)
	if err != nil {
		return err
	}
	defer s.Close()
	o := replay.Options{Contents: f.contents, DryRun: f.dryRun}
	if !to.none() {
		o.Until = func(r *kml.Record) bool { return to.compare(r) > 0 }
	}
	bar := newProgress(a.env.Stderr, "replaying")
	var n int64
	out := newRecordPrinter(a.env.Stdout, false)
	o.Each = func(r *kml.Record) error {
		n++
		bar.set(n)
		if f.dryRun {
			return out.print(r)
		}
		return nil
	}
	res, err := replay.Run(ctx, s, dir, o)
	bar.end()
	if err := errors.Join(err, out.Flush()); err != nil {
		return replayProblem(ctx, arg, dir, err)
	}
	a.tellReplay(dir, res, f.dryRun)
	return nil
}

func (a *app) tellReplay(dir string, res *replay.Result, dry bool) {
	did, has := "is", "got"
	if dry {
		did, has = "would be", "would get"
	}
	a.out("%s %s at %s, %s behind %s; %s %s contents", shellQuote(dir), did, res.To, plural(res.Records, "record"), res.From,
		plural(res.Placed, "file"), has)
	if n := len(res.Missing); n > 0 {
		a.out(", %s a hole instead:\n", plural(int64(n), "file"))
	} else {
		a.out("\n")
	}
	for _, m := range res.Missing {
		a.out("  missing: %s, %d bytes\n", shellQuote(m.Path), m.Size)
	}
	if res.Skipped > 0 {
		a.out("%s could not be set here: run as root, on a file system that holds them\n", plural(res.Skipped, "owner or xattr"))
	}
}

// replayProblem says what is wrong with a replay, and what to do.
func replayProblem(ctx context.Context, arg, dir string, err error) error {
	p := &problem{Thing: dir, Err: err}
	for _, k := range []struct {
		err    error
		remedy string
	}{
		{replay.ErrNotEmpty, "name an empty folder, or one that does not exist"},
		{replay.ErrCrashed, "replay into a new folder"},
		{replay.ErrFileset, "name that fileset's log, or another folder"},
		{replay.ErrHistory, "mezzo kml diff tells where two logs part; replay into a new folder"},
		{replay.ErrBehind, "replay into a new folder to see an earlier state"},
		{replay.ErrBusy, "wait until it has ended"},
		{replay.ErrChanged, "undo the change, or replay into a new folder"},
	} {
		if errors.Is(err, k.err) {
			p.Err, p.Remedy = k.err, k.remedy
			if rec := (*replay.RecordError)(nil); errors.As(err, &rec) {
				p.Err = fmt.Errorf("%w", rec)
			}
			if k.err == replay.ErrBusy {
				p.Code = exitInUse
			}
			return p
		}
	}
	switch {
	case ctx.Err() != nil:
		p.Err, p.Remedy = errors.New("interrupted"), "do it again, it goes on where it was"
	case errors.As(err, new(*replay.RecordError)):
		p.Remedy = "then do it again, it goes on where it was"
	case errors.Is(err, replay.ErrStart):
		p.Thing, p.Remedy = arg, "take a log that was kept whole"
	case errors.As(err, new(*kml.Damage)), errors.Is(err, kml.ErrNewer), errors.Is(err, kml.ErrTruncated):
		return logProblem(arg, err)
	case errors.As(err, new(*fs.PathError)):
		p.Thing = ""
	}
	return p
}
