package cli

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/mezzofs/mezzo/p9srv/plain"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// serveFlags are the flags of mezzo serve.
type serveFlags struct {
	listenFlags
	access    accessFlags
	noJournal bool
}

func (a *app) serveCommand() *cobra.Command {
	var flags serveFlags
	c := &cobra.Command{
		Use:   "serve DIR",
		Short: "be the master of a fileset, or serve any folder",
		RunE: func(cmd *cobra.Command, args []string) error {
			if flags.noJournal {
				return a.servePlain(cmd.Context(), args[0], &flags)
			}
			return a.serve(cmd.Context(), args[0], &flags)
		},
	}
	c.Flags().BoolVar(&flags.noJournal, "no-journal", false, "serve any folder as it is, without a log")
	flags.listenFlags.add(c)
	flags.access.add(c)
	return c
}

func (l *listenFlags) add(c *cobra.Command) {
	c.Flags().StringArrayVar(&l.listen, "listen", nil, "listen at `ADDR` too; may be given several times")
	c.Flags().Var(&l.sync, "sync", "make changes durable `WHEN`: always (before they are answered), every so often (such as 1s), or never")
	l.retain = defaultRetain()
	c.Flags().Var(&l.retain.size, "retain-size", "keep the last `SIZE` of the log at least, such as 512M")
	c.Flags().Var(&l.retain.age, "retain-age", "keep the log of the last `AGE` at least, such as 12h or 30d")
	c.Flags().BoolVar(&l.insecure, "insecure", false, "allow TCP addresses beyond loopback, where users are not proven")
}

func (a *app) serve(ctx context.Context, dir string, flags *serveFlags) (err error) {
	addrs, err := flags.addresses()
	if err != nil {
		return err
	}
	who, err := flags.access.resolve()
	if err != nil {
		return err
	}
	if err := checkFolder(dir); err != nil {
		return err
	}
	m, err := a.openMaster(ctx, dir, addrs, &flags.listenFlags, who)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	a.out("serving %s, fileset %s; mount it with one of\n", shellQuote(dir), m.tree.State().Fileset().UUID)
	m.printMounts(a)
	return m.serve(ctx, a)
}

// servePlain serves a folder as it is.
func (a *app) servePlain(ctx context.Context, dir string, flags *serveFlags) (err error) {
	addrs, err := flags.addresses()
	if err != nil {
		return err
	}
	if len(addrs) == 0 {
		addrs = []address{loopbackPort()}
	}
	for _, name := range []string{"sync", "retain-size", "retain-age"} {
		if flags.access.isChanged(name) {
			return usagef("--%s: is about a log, and --no-journal keeps none: leave one of them out", name)
		}
	}
	who, err := flags.access.resolve()
	if err != nil {
		return err
	}
	if err := checkPlain(dir, who.readOnly); err != nil {
		return err
	}
	t, err := plain.Open(dir, who.plainOptions())
	if err != nil {
		return plainProblem(dir, err)
	}
	s := server{access: who, insecure: flags.insecure, attacher: func(bool) attacher { return t }}
	defer func() {
		closeAll(s.listeners)
		err = errors.Join(err, t.Close())
	}()
	if s.listeners, err = listenAll(ctx, listening{addrs, flags.insecure, who.shared()}); err != nil {
		return err
	}
	a.out("serving %s; mount it with one of\n", shellQuote(dir))
	s.printKernelMounts(a)
	return s.serve(ctx, a)
}

// loopbackPort is a free port of the loopback interface.
func loopbackPort() address { return address{wire.Addr{Net: "tcp", Host: "127.0.0.1"}} }

// checkPlain refuses to show clients what keeps a fileset together, unless they
// cannot change it.
func checkPlain(dir string, readOnly bool) error {
	if err := checkFolder(dir); err != nil {
		return err
	}
	made, err := isFileset(dir)
	switch {
	case errors.Is(err, fs.ErrPermission), err == nil && !made, readOnly:
		return nil
	case err != nil:
		return err
	}
	return &problem{Thing: dir, Err: errors.New("is a fileset, whose state clients would see and could change"),
		Remedy: "leave --no-journal out, or add --ro"}
}

// plainProblem says why a folder cannot be served.
func plainProblem(dir string, err error) error {
	if _, serr := os.Stat("/proc/self/fd"); serr != nil {
		return &problem{Thing: "/proc", Err: errors.New("is not mounted, and --no-journal opens files through it"), Remedy: "mount -t proc proc /proc"}
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		err = errno
	}
	return pathProblem(dir, err)
}
