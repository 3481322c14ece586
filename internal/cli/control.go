package cli

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/spf13/cobra"
)

func (a *app) offlineCommand() *cobra.Command {
	c := a.controlCommand("offline", "have a mount do without its master")
	run := c.RunE
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if err := run(cmd, args); err != nil {
			return err
		}
		return a.tellMissing(cmd.Context(), first(args))
	}
	return c
}

func (a *app) onlineCommand() *cobra.Command {
	return a.controlCommand("online", "have a mount use its master again")
}

func (a *app) controlCommand(word, short string) *cobra.Command {
	return &cobra.Command{
		Use:   word + " [MNT]",
		Short: short,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.control(cmd.Context(), first(args), word)
		},
	}
}

func (a *app) syncCommand() *cobra.Command {
	wait := false
	c := &cobra.Command{
		Use:   "sync [WHERE]",
		Short: "send what was changed in a mount; ask whether a replica is equal",
		RunE: func(cmd *cobra.Command, args []string) error {
			if p, err := locate(first(args)); err == nil && p.folder != "" {
				return a.syncReplica(cmd.Context(), p, wait)
			}
			word := "push"
			if wait {
				word = "sync"
			}
			return a.control(cmd.Context(), first(args), word)
		},
	}
	c.Flags().BoolVar(&wait, "wait", false, "wait until the master has decided on all of it, or the replica is equal")
	return c
}

// control writes a word to the ctl file of a mount of mezzo mount.
func (a *app) control(ctx context.Context, where, word string) error {
	p, err := locate(where)
	if err != nil {
		return err
	}
	none := &problem{Thing: p.String(), Err: errors.New("is no mount with a cache"), Remedy: "name a mount that mezzo mount made"}
	if p.mount == "" {
		return none
	}
	f, err := mountedExtension{p.mount}.open(ctx, "ctl", true)
	if errors.Is(err, syscall.ENOENT) {
		return none
	}
	if err != nil {
		return pathProblem(p.mount, err)
	}
	defer f.Close()
	_, err = fmt.Fprintln(f, word)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EHOSTDOWN) && word == "hoard":
		return &problem{Thing: p.mount, Err: errors.New("the master cannot be reached; what is missing is fetched later"), Code: exitUnreachable}
	case errors.Is(err, syscall.EHOSTDOWN):
		return &problem{Thing: p.mount, Err: errors.New("the master cannot be reached; what was changed is kept and sent later"), Code: exitUnreachable}
	}
	var errno syscall.Errno
	if errors.As(err, &errno) && word == "hoard" {
		return &problem{Thing: p.mount, Err: fmt.Errorf("not all that is pinned could be fetched: %w", errno), Remedy: "mezzo pins shows what is missing"}
	}
	if errors.As(err, &errno) && word == "sync" {
		return &problem{Thing: p.mount, Err: fmt.Errorf("the master does not take all of it: %w", errno), Remedy: "mezzo status shows what waits, and why"}
	}
	return pathProblem(p.mount, err)
}
