package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
)

func (a *app) logCommand() *cobra.Command {
	var follow, asJSON, own bool
	c := &cobra.Command{
		Use:   "log [WHERE]",
		Short: "show the changes of a fileset",
		RunE: func(cmd *cobra.Command, args []string) error {
			if own {
				if follow || asJSON {
					return usagef("--local goes with neither --follow nor --json")
				}
				return a.ownLog(cmd.Context(), first(args))
			}
			return a.showLog(cmd.Context(), first(args), follow, asJSON)
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with changes as they happen")
	c.Flags().BoolVar(&asJSON, "json", false, "print records as JSON objects")
	c.Flags().BoolVar(&own, "local", false, "show what was done in a mount and its master has not taken")
	return c
}

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

func (a *app) showLog(ctx context.Context, where string, follow, asJSON bool) error {
	p, err := locate(where)
	if err != nil {
		return err
	}
	x, err := a.connect(ctx, p)
	if err != nil {
		return err
	}
	out := newRecordPrinter(a.env.Stdout, asJSON)
	if x == nil {
		if follow {
			return &problem{Thing: p.String(), Err: errors.New("nobody serves it, so nothing will change"), Remedy: "leave -f out, or serve it first"}
		}
		return folderLog(p.folder, out)
	}
	defer x.Close()
	err = followFeed(ctx, x, follow, out)
	if ctx.Err() != nil && follow {
		return out.Flush() // asked to end
	}
	if err != nil {
		return &problem{Thing: p.String(), Err: err}
	}
	return nil
}

// ownLog prints what was done in a mount and has not come back, as it was done.
func (a *app) ownLog(ctx context.Context, where string) error {
	p, err := locate(where)
	if err != nil {
		return err
	}
	if p.mount == "" {
		return &problem{Thing: p.String(), Err: errors.New("is no mount with a cache"), Remedy: "name a mount that mezzo mount made"}
	}
	if err := readWhole(ctx, mountedExtension{p.mount}, "made", a.env.Stdout); err != nil {
		return pathProblem(p.mount, err)
	}
	return nil
}

// recordPrinter prints records, one a line.
type recordPrinter struct {
	*bufio.Writer
	json bool
	line []byte
}

func newRecordPrinter(w io.Writer, asJSON bool) *recordPrinter {
	return &recordPrinter{Writer: bufio.NewWriter(w), json: asJSON}
}

func (p *recordPrinter) print(r *kml.Record) error {
	if p.json {
		b, err := json.Marshal(r)
		if err != nil {
			return err
		}
		p.line = append(p.line[:0], b...)
	} else {
		p.line = kml.AppendText(p.line[:0], r)
	}
	_, err := p.Write(append(p.line, '\n'))
	return err
}

// folderLog prints the log of a fileset nobody serves, from its files.
func folderLog(dir string, out *recordPrinter) error {
	log, err := kml.Open(filepath.Join(dir, stateDir, "kml"), kml.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer log.Close()
	r, err := log.ReaderAfter(log.Start())
	if err != nil {
		return err
	}
	defer r.Close()
	for {
		rec, err := r.TryNext()
		if err == io.EOF {
			return out.Flush()
		}
		if err != nil {
			return errors.Join(err, out.Flush())
		}
		if err := out.print(rec); err != nil {
			return err
		}
	}
}

// followFeed prints what the feed of x holds; without follow up to where it
// reached when it was asked.
func followFeed(ctx context.Context, x extension, follow bool, out *recordPrinter) error {
	f, err := x.open(ctx, "feed", true) // without a request it is all there is
	if err != nil {
		return err
	}
	defer f.Close()
	var d feed.Decoder
	var until kml.Position
	buf := make([]byte, 256<<10)
	for ctx.Err() == nil {
		n, err := f.Read(buf)
		if n == 0 && (err == nil || err == io.EOF) {
			return errors.Join(errors.New("the feed ended"), out.Flush())
		}
		if n == 0 {
			return errors.Join(err, out.Flush())
		}
		if _, err := d.Write(buf[:n]); err != nil {
			return err
		}
		done, err := printFrames(&d, out, &until, follow)
		// What has been read is shown before the next read waits.
		if err := errors.Join(err, out.Flush()); err != nil || done {
			return err
		}
	}
	return ctx.Err()
}

// printFrames prints the records among the frames d holds. It is done at
// until, the end that the greeting names.
func printFrames(d *feed.Decoder, out *recordPrinter, until *kml.Position, follow bool) (done bool, err error) {
	for {
		fr, ok, err := d.Next()
		if err != nil || !ok {
			return false, err
		}
		m, err := fr.Message()
		if err != nil {
			return false, err
		}
		var at kml.Position
		switch m := m.(type) {
		case *feed.Greeting:
			*until = m.End
			if m.End == 0 && !follow {
				return true, nil
			}
		case *feed.Failure:
			return false, fmt.Errorf("the master: %w", m)
		case *feed.Record:
			at, err = m.Record.Pos, out.print(m.Record)
		case *feed.RecordData:
			at, err = m.Record.Pos, out.print(m.Record)
		}
		if err != nil {
			return false, err
		}
		if !follow && at != 0 && at >= *until {
			return true, nil
		}
	}
}
