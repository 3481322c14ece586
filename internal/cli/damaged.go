package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/mezzofs/mezzo/kml/tree"
)

// command has the fileset at where obey a line: the master that serves it, or,
// while nobody does, this process.
func (a *app) command(ctx context.Context, where, line string) error {
	p, err := locate(where)
	if err != nil {
		return err
	}
	x, err := a.connect(ctx, p)
	if err != nil {
		return err
	}
	if x == nil {
		t, err := a.openIdle(p.folder)
		if err != nil {
			return err
		}
		err = t.Control(ctx, nil, line)
		return errors.Join(commandProblem(p, err), t.Close())
	}
	defer x.Close()
	return commandProblem(p, writeWhole(ctx, x, "ctl", []byte(line+"\n")))
}

func commandProblem(p place, err error) error {
	if err == nil {
		return nil
	}
	prob := &problem{Thing: p.String(), Err: err}
	switch {
	case errors.Is(err, syscall.EACCES):
		prob.Remedy = "it takes the right admin: run it as the user who serves, or as root"
	case errors.Is(err, syscall.ENOENT):
		prob.Remedy = "ask the master, not a client; is there a newer mezzo at the master?"
	}
	return prob
}

// openIdle opens a fileset that nobody serves.
func (a *app) openIdle(dir string) (*tree.Tree, error) {
	t, err := tree.Open(dir, tree.Options{Logger: a.log, NoWatch: true, Sync: tree.SyncNever})
	if err != nil {
		return nil, treeProblem(dir, err)
	}
	return t, nil
}

func (a *app) kmlMarkCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "mark WHERE NAME",
		Short: "put a note into a fileset's log",
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[1]
			if name == "" || len(name) > 1024 || strings.ContainsAny(name, "\n\x00") {
				return usagef("NAME is one line of 1 to 1024 bytes")
			}
			return a.command(cmd.Context(), args[0], "mark "+name)
		},
	}
}

func (a *app) kmlTruncateCommand() *cobra.Command {
	keep := defaultRetain()
	c := &cobra.Command{
		Use:   "truncate WHERE",
		Short: "drop old segments of a fileset's log now",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.command(cmd.Context(), args[0], fmt.Sprintf("truncate %d %s", keep.size.bytes, keep.age.age))
		},
	}
	c.Flags().Var(&keep.size, "retain-size", "keep at least the last SIZE of it")
	c.Flags().Var(&keep.age, "retain-age", "keep at least the records of the last AGE")
	return c
}

func (a *app) scanCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "scan [WHERE]",
		Short: "look for changes that were made straight in a fileset's folder, now",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.command(cmd.Context(), first(args), "scan")
		},
	}
}

func (a *app) damagedCommand() *cobra.Command {
	var accept []string
	c := &cobra.Command{
		Use:   "damaged [WHERE]",
		Short: "list files that a crash of the machine left in pieces, or accept them",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.damaged(cmd.Context(), first(args), accept)
		},
	}
	c.Flags().StringArrayVar(&accept, "accept", nil, "take what is on the disk of PATH for its newest version")
	return c
}

// damaged lists the damaged files of a fileset, or accepts some.
func (a *app) damaged(ctx context.Context, where string, accept []string) error {
	text, err := a.stateText(ctx, where, "damaged", func(b *bytes.Buffer, p place) error {
		t, err := a.openIdle(p.folder)
		if err != nil {
			return err
		}
		b.Write(t.DamagedText())
		return t.Close()
	})
	if err != nil {
		return err
	}
	if len(accept) == 0 {
		_, err := a.env.Stdout.Write(text)
		return err
	}
	known := damagedPaths(string(text))
	for _, name := range accept {
		oid, ok := known[path.Join("/", name)]
		if !ok {
			return &problem{Thing: name, Err: errors.New("is not damaged"), Remedy: "mezzo damaged lists what is, with paths from the root of the fileset"}
		}
		if err := a.command(ctx, where, "accept "+oid); err != nil {
			return err
		}
	}
	return nil
}

// damagedPaths maps the paths in a list of damaged files to oids.
func damagedPaths(text string) map[string]string {
	m := make(map[string]string)
	for _, line := range strings.Split(text, "\n") {
		oid, rest, _ := strings.Cut(line, " ")
		_, rest, _ = strings.Cut(rest, " ") // the version
		quoted, err := strconv.QuotedPrefix(rest)
		if err != nil {
			continue
		}
		if p, err := strconv.Unquote(quoted); err == nil {
			m[p] = oid
		}
	}
	return m
}
