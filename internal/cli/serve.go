package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"
)

func (a *app) serveCommand() *cobra.Command {
	var flags listenFlags
	c := &cobra.Command{
		Use:   "serve DIR",
		Short: "be the master of a fileset",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.serve(cmd.Context(), args[0], &flags)
		},
	}
	flags.add(c)
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

func (a *app) serve(ctx context.Context, dir string, flags *listenFlags) (err error) {
	addrs, err := flags.addresses()
	if err != nil {
		return err
	}
	if err := checkFolder(dir); err != nil {
		return err
	}
	m, err := a.openMaster(ctx, dir, addrs, flags)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	a.out("serving %s, fileset %s; mount it with one of\n", shellQuote(dir), m.tree.State().Fileset().UUID)
	m.printMounts(a)
	return m.serve(ctx, a)
}
