package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/mezzofs/mezzo/cachefs"
	"github.com/mezzofs/mezzo/kml/tree"
	"github.com/mezzofs/mezzo/p9srv/export"
)

// exitChanging is mezzo verify's: equal, but for what could not be compared.
const exitChanging = 5

// verifyFlags are the flags of mezzo verify.
type verifyFlags struct {
	repair bool
	json   bool
}

func (a *app) verifyCommand() *cobra.Command {
	var flags verifyFlags
	c := &cobra.Command{
		Use:   "verify ADDR DIR",
		Short: "compare a replica with its master by content",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.verify(cmd.Context(), args[0], args[1], &flags)
		},
	}
	f := c.Flags()
	f.BoolVar(&flags.repair, "repair", false, "have the replica mended where it differs")
	f.BoolVar(&flags.json, "json", false, "print a line of JSON for each difference, and one at the end")
	return c
}

func (a *app) verify(ctx context.Context, where, dir string, flags *verifyFlags) error {
	addr, err := masterAddress(where, a.env.Getenv)
	if err != nil {
		return err
	}
	p, err := locate(dir)
	if err != nil {
		return err
	}
	if p.folder == "" {
		return &problem{Thing: dir, Err: tree.ErrNotReplica, Remedy: "name a folder that mezzo replicate keeps"}
	}
	fs, err := readFileset(p.folder)
	if err != nil {
		return err
	}
	if fs.Role != tree.RoleReplica {
		return treeProblem(dir, tree.ErrNotReplica)
	}
	m, err := a.dialExtension(ctx, addr)
	if err != nil {
		return err
	}
	x, err := a.connect(ctx, p)
	if err = errors.Join(err, m.Close()); err != nil {
		return err
	}
	o := cachefs.VerifyOptions{Master: addr.String(), Repair: flags.repair}
	if x != nil {
		if err := x.Close(); err != nil {
			return err
		}
	} else {
		// Nobody keeps it: that is done here meanwhile.
		end, err := a.keepReplica(ctx, addr, p.folder, flags.repair)
		if err != nil {
			return err
		}
		defer end()
		o.Stopped = !flags.repair
	}
	sock, err := folderSocket(p.folder, a.env.Getenv)
	if err != nil {
		return err
	}
	o.Replica = unixAddress(sock).String()
	err = a.compare(ctx, o, flags)
	if ctx.Err() != nil {
		return &problem{Thing: dir, Err: errors.New("interrupted before all was compared")}
	}
	return err
}

// compare runs a comparison, shows what it finds, and makes an exit code of it.
func (a *app) compare(ctx context.Context, o cachefs.VerifyOptions, flags *verifyFlags) error {
	bar := newProgress(a.env.Stderr, "comparing")
	var mu sync.Mutex
	o.Progress = func(replica bool, names, bytes int64) {
		mu.Lock()
		defer mu.Unlock()
		if replica {
			bar.describe(fmt.Sprintf("comparing, %d MiB read", bytes>>20))
			bar.set(names)
		}
	}
	left := int64(0)
	o.Found = func(d cachefs.Difference) {
		if !d.Mended && !d.Changing {
			left++
		}
		if !flags.json {
			a.out("%s\n", differenceLine(d))
			return
		}
		if b, err := json.Marshal(d); err == nil {
			a.out("%s\n", b)
		}
	}
	res, err := cachefs.Verify(ctx, o)
	bar.end()
	if err != nil {
		return &problem{Thing: o.Master, Err: err}
	}
	if flags.json {
		if b, err := json.Marshal(struct {
			cachefs.VerifyResult
			Equal bool `json:"equal"`
		}{res, left == 0 && res.Changing == 0}); err == nil {
			a.out("%s\n", b)
		}
	} else {
		a.out("%s\n", summaryLine(res))
	}
	switch {
	case left > 0:
		return errSilent{exitFailed}
	case res.Changing > 0:
		return errSilent{exitChanging}
	}
	return nil
}

// differenceLine is a difference as a person reads it.
func differenceLine(d cachefs.Difference) string {
	line := strings.Join(d.Kinds, ",")
	switch {
	case d.Changing:
		line = "changing"
	case d.Mended:
		line = "mended: " + line
	}
	line += " " + strconv.Quote(d.Path)
	if d.Why != "" {
		line += ": " + d.Why
	}
	return line
}

func summaryLine(r cachefs.VerifyResult) string {
	s := fmt.Sprintf("%s and %d MiB read, %s: ", plural(r.Names, "name"), r.Bytes>>20, plural(r.Compared, "comparison"))
	if r.Differences == 0 {
		s += "equal"
	} else {
		s += plural(r.Differences, "difference")
		if r.Mended > 0 {
			s += fmt.Sprintf(", %d mended", r.Mended)
		}
	}
	if r.Changing > 0 {
		s += fmt.Sprintf(", %d still changing", r.Changing)
	}
	return s
}

// keepReplica opens and serves a replica that nobody keeps. To be mended it has to
// follow its master; else it stays as it is. end gives it up.
func (a *app) keepReplica(ctx context.Context, addr address, dir string, follow bool) (end func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	warn := func(err error) {
		if err != nil && ctx.Err() == nil {
			a.log.Warn("keeping the replica meanwhile ended", "fileset", dir, "err", err)
		}
	}
	if follow {
		rep, err := a.openReplica(ctx, addr, nil, false, cachefs.ReplicaOptions{Dir: dir, Addr: addr.String(), Logger: a.log, SameChoice: true})
		if err != nil {
			cancel()
			return nil, err
		}
		done := make(chan struct{})
		go func() { // ends with end, which waits for it
			defer close(done)
			warn(rep.Run(ctx, false))
		}()
		end = func() {
			cancel()
			<-done
		}
		err = rep.WaitEqual(ctx)
		if err != nil && !errors.As(err, new(*cachefs.NotEqual)) {
			end()
			return nil, a.replicaProblem(addr, dir, err)
		}
		return end, nil
	}
	rep, err := tree.OpenReplica(dir, tree.ReplicaOptions{Options: tree.Options{Logger: a.log, NoWatch: true}, SameChoice: true})
	if err != nil {
		cancel()
		return nil, a.replicaProblem(addr, dir, err)
	}
	m := &master{tree: rep.Tree()}
	if rep.Copying() {
		err = &problem{Thing: dir, Err: errors.New("its copy is not complete"), Remedy: "let mezzo replicate end it, or verify with --repair"}
	} else {
		err = m.listen(ctx, a, nil, export.JournalOptions{Logger: a.log})
	}
	if err != nil {
		cancel()
		return nil, errors.Join(err, m.closeDoors(), rep.Close())
	}
	done := make(chan struct{})
	go func() { // ends with end, which waits for it
		defer close(done)
		warn(m.serve(ctx, a))
	}()
	return func() {
		cancel()
		<-done
		if err := errors.Join(m.closeDoors(), rep.Close()); err != nil {
			a.log.Warn("closing the replica", "fileset", dir, "err", err)
		}
	}, nil
}
