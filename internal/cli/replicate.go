package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/mezzofs/mezzo/cachefs"
	"github.com/mezzofs/mezzo/kml/glob"
	"github.com/mezzofs/mezzo/kml/tree"
	"github.com/mezzofs/mezzo/p9srv/export"
)

// replicateFlags are the flags of mezzo replicate.
type replicateFlags struct {
	once     bool
	json     bool
	readOnly bool
	listen   []string
	insecure bool
	only     []string
	exclude  []string
	maxSize  sizeFlag
	atomic   string
	owners   []string
	retain   retainFlags
}

func (a *app) replicateCommand() *cobra.Command {
	var flags replicateFlags
	c := &cobra.Command{
		Use:   "replicate ADDR DIR",
		Short: "keep a full copy of a fileset in a plain folder",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.replicate(cmd.Context(), args[0], args[1], &flags)
		},
	}
	f := c.Flags()
	f.BoolVar(&flags.once, "once", false, "end when the folder is what the master has")
	f.BoolVar(&flags.json, "json", false, "print a line of JSON whenever something changes")
	f.BoolVar(&flags.readOnly, "read-only", false, "undo what is changed in the folder (the default)")
	f.StringArrayVar(&flags.listen, "listen", nil, "serve the replica at `ADDR` too; may be given several times")
	f.BoolVar(&flags.insecure, "insecure", false, "allow TCP addresses beyond loopback, where users are not proven")
	f.StringArrayVar(&flags.only, "only", nil, "keep files that match `GLOB` alone; may be given several times")
	f.StringArrayVar(&flags.exclude, "exclude", nil, "keep nothing that matches `GLOB`, or is below; may be given several times")
	f.Var(&flags.maxSize, "max-size", "keep no files larger than `SIZE`, such as 100M")
	f.StringArrayVar(&flags.owners, "map", nil, "give files of the user or group FROM to TO, by the `RULE` uid:FROM=TO or gid:FROM=TO; may be given several times")
	f.StringVar(&flags.atomic, "atomic", "auto", "replace files whole: `WHEN` is auto (not large ones that change a little) or always")
	flags.retain = defaultRetain()
	f.Var(&flags.retain.size, "retain-size", "keep the last `SIZE` of the log at least, such as 512M")
	f.Var(&flags.retain.age, "retain-age", "keep the log of the last `AGE` at least, such as 12h or 30d")
	return c
}

// choice is what the flags say of what is kept; nil is all.
func (f *replicateFlags) choice() (*tree.Choice, error) {
	if len(f.only)+len(f.exclude) == 0 && f.maxSize.bytes == 0 {
		return nil, nil
	}
	c := &tree.Choice{MaxSize: uint64(f.maxSize.bytes)}
	for _, l := range []struct {
		from []string
		to   *[]glob.Glob
	}{{f.only, &c.Only}, {f.exclude, &c.Exclude}} {
		for _, p := range l.from {
			g, err := glob.Parse(p)
			if err != nil {
				return nil, &usageError{err}
			}
			*l.to = append(*l.to, g)
		}
	}
	return c, nil
}

// ownerMap is what the flags say of owners.
func (f *replicateFlags) ownerMap() (*tree.OwnerMap, error) {
	m := new(tree.OwnerMap)
	for _, rule := range f.owners {
		if err := m.Add(rule); err != nil {
			return nil, &usageError{fmt.Errorf("--map: %w", err)}
		}
	}
	if len(f.owners) > 0 && os.Geteuid() != 0 {
		return nil, &problem{Thing: "--map", Err: errors.New("only root may give files away"), Remedy: "leave it out: all files are then yours"}
	}
	return m, nil
}

func (a *app) replicate(ctx context.Context, where, dir string, flags *replicateFlags) error {
	addr, err := masterAddress(where, a.env.Getenv)
	if err != nil {
		return err
	}
	listen := listenFlags{listen: flags.listen, insecure: flags.insecure}
	addrs, err := listen.addresses()
	if err != nil {
		return err
	}
	choice, err := flags.choice()
	if err != nil {
		return err
	}
	if flags.atomic != "auto" && flags.atomic != "always" {
		return usagef("--atomic %s: is auto or always", flags.atomic)
	}
	o := cachefs.ReplicaOptions{Dir: dir, Addr: addr.String(), Logger: a.log, Choose: choice, Whole: flags.atomic == "always"}
	if o.Owners, err = flags.ownerMap(); err != nil {
		return err
	}
	o.RetainSize, o.RetainAge = flags.retain.policy()
	rep, err := a.openReplica(ctx, addr, addrs, flags.insecure, o)
	if err != nil {
		return err
	}
	show := a.showReplica(rep, flags.json)
	err = rep.Run(ctx, flags.once)
	show.end()
	switch {
	case err == nil:
		return nil
	case errors.As(err, new(*cachefs.NotEqual)):
		return &problem{Thing: dir, Err: err}
	case ctx.Err() != nil:
		return &problem{Thing: dir, Err: errors.New("interrupted before it was what the master has"), Remedy: "run it again, it goes on where it was"}
	}
	return a.replicaProblem(addr, dir, err)
}

// openReplica opens a replica that is served while it is open.
func (a *app) openReplica(ctx context.Context, addr address, addrs []address, insecure bool, o cachefs.ReplicaOptions) (rep *cachefs.Replica, err error) {
	doors := &relayDoors{a: a, addrs: addrs, insecure: insecure, rep: func() *cachefs.Replica { return rep }}
	o.Opened = func(t *tree.Tree) error { return doors.open(ctx, t) }
	o.Closing = doors.close
	var ready sync.WaitGroup
	ready.Add(1)
	defer ready.Done()
	doors.ready = &ready
	if rep, err = cachefs.OpenReplica(ctx, o); err != nil {
		return nil, a.replicaProblem(addr, o.Dir, err)
	}
	return rep, nil
}

func (a *app) replicaProblem(addr address, dir string, err error) error {
	var locked *tree.LockedError
	switch {
	case errors.As(err, new(*problem)):
		return err
	case errors.As(err, &locked), errors.Is(err, tree.ErrInside), errors.Is(err, tree.ErrForeign), errors.Is(err, tree.ErrNotReplica):
		return treeProblem(dir, err)
	case errors.Is(err, tree.ErrOtherFileset):
		return &problem{Err: err, Remedy: "name the master of this replica, or another folder"}
	}
	return a.clientProblem(addr, dir, err)
}

// relayDoors serve a replica: its own status, and whoever follows it.
type relayDoors struct {
	a        *app
	addrs    []address
	insecure bool
	rep      func() *cachefs.Replica
	ready    *sync.WaitGroup // rep may be called

	m      *master
	cancel context.CancelFunc
	done   chan struct{}
}

func (d *relayDoors) open(ctx context.Context, t *tree.Tree) error {
	d.m = &master{tree: t, server: server{insecure: d.insecure}}
	more := func(line func(string, any)) {
		d.ready.Wait()
		replicaLines(d.rep().Status(), line)
	}
	if err := d.m.listen(ctx, d.a, d.addrs, export.JournalOptions{Logger: d.a.log, Status: more, Above: d}); err != nil {
		return errors.Join(err, d.m.closeDoors())
	}
	ctx, d.cancel = context.WithCancel(ctx)
	d.done = make(chan struct{})
	go func() { // ends with close, which waits for it
		defer close(d.done)
		if err := d.m.serve(ctx, d.a); err != nil {
			d.a.log.Error("the replica is served no longer", "fileset", t.Dir(), "err", err)
		}
	}()
	return nil
}

// OpenAbove is export.Above's.
func (d *relayDoors) OpenAbove(ctx context.Context, uid uint32, create bool, flags int, names ...string) (tree.ExtHandle, error) {
	d.ready.Wait()
	return d.rep().OpenAbove(ctx, uid, create, flags, names...)
}

func (d *relayDoors) close() {
	d.cancel()
	<-d.done
	if err := d.m.closeDoors(); err != nil {
		d.a.log.Warn("closing what served the replica", "err", err)
	}
}

// replicaLines are a replica's part of the status.
func replicaLines(s cachefs.ReplicaStatus, line func(string, any)) {
	line("upstream", s.Upstream)
	line("state", s.State)
	line("master_end", s.End)
	line("equal", yesNo(s.Equal))
	line("wanted", s.Wanted)
	line("failed_wants", s.Failed)
	line("aside", s.Counts.Aside)
	line("reverted", s.Counts.Reverted)
	line("skipped", s.Counts.Skipped)
	line("patched", s.Counts.Patched)
	if s.Why != "" {
		line("why", strings.ReplaceAll(s.Why, "\n", " "))
	}
	line("troubles", int64(len(s.Troubles))+s.More)
	for i, t := range s.Troubles {
		if i == 100 {
			break
		}
		line("trouble", fmt.Sprintf("%s: %s: %s (%s)", strconv.Quote(t.Path), t.Op, strings.ReplaceAll(t.Err, "\n", " "), t.Remedy))
	}
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// replicaShow tells on a terminal, or in lines of JSON, how far a replica is.
type replicaShow struct {
	rep  *cachefs.Replica
	out  io.Writer // of JSON; nil: none
	bar  *progress
	stop chan struct{}
	done chan struct{}
	last string
}

// showEvery is how often a change is shown.
const showEvery = 200 * time.Millisecond

func (a *app) showReplica(rep *cachefs.Replica, asJSON bool) *replicaShow {
	s := &replicaShow{rep: rep, bar: &progress{}, stop: make(chan struct{}), done: make(chan struct{})}
	if asJSON {
		s.out = a.env.Stdout
	} else {
		s.bar = newProgress(a.env.Stderr, "replicating")
	}
	go s.run()
	return s
}

func (s *replicaShow) run() {
	defer close(s.done)
	tick := time.NewTicker(showEvery)
	defer tick.Stop()
	for {
		s.show(s.rep.Status())
		select {
		case <-tick.C:
		case <-s.stop:
			return
		}
	}
}

func (s *replicaShow) show(st cachefs.ReplicaStatus) {
	if s.out != nil {
		b, err := json.Marshal(st)
		if err == nil && string(b) != s.last {
			s.last = string(b)
			fmt.Fprintf(s.out, "%s\n", b)
		}
		return
	}
	s.bar.describe(replicaLine(st))
	s.bar.set(st.Entries)
}

// replicaLine is the status in a line.
func replicaLine(s cachefs.ReplicaStatus) string {
	line := s.State
	switch {
	case s.Copying:
		line = "copying"
	case s.Equal:
		line = "equal"
	}
	if s.Wanted > 0 {
		line += ", " + plural(int64(s.Wanted), "file") + " to fetch"
	}
	if n := len(s.Troubles); n > 0 {
		line += ", " + plural(int64(n)+s.More, "trouble")
	}
	return fmt.Sprintf("%s, %d MiB", line, s.Bytes>>20)
}

// end ends the showing.
func (s *replicaShow) end() {
	close(s.stop)
	<-s.done
	s.show(s.rep.Status())
	s.bar.end()
}
