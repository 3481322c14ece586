package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/mezzofs/mezzo/internal/fault"
)

// app is one run of the program.
type app struct {
	env     Env
	verbose int
	log     *slog.Logger
	level   slog.LevelVar

	mu   sync.Mutex
	last map[int]func() // what a forced end does, see onForce
	next int
}

// Main runs the command that env.Args name and returns the exit code.
func Main(env Env) int {
	a := &app{env: env, last: map[int]func(){}}
	a.level.Set(slog.LevelWarn)
	a.log = slog.New(slog.NewTextHandler(env.Stderr, &slog.HandlerOptions{Level: &a.level}))
	if err := fault.Arm(env.Getenv(fault.Env)); err != nil {
		fmt.Fprintln(env.Stderr, "mezzo:", err)
		return exitUsage
	}
	ctx, stop := a.watchSignals()
	defer stop()

	if len(env.Args) > 0 && filepath.Base(env.Args[0]) == mountHelper {
		return a.mountHelperMain(ctx)
	}
	root := a.rootCommand()
	var args []string
	if len(env.Args) > 0 {
		args = env.Args[1:]
	}
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil {
		a.complain(cmd, err)
	}
	return exitCode(err)
}

// complain prints err as "mezzo COMMAND: ...".
func (a *app) complain(cmd *cobra.Command, err error) {
	if errors.As(err, new(errSilent)) {
		return
	}
	where := "mezzo"
	if cmd != nil {
		where = cmd.CommandPath()
	}
	fmt.Fprintf(a.env.Stderr, "%s: %s\n", where, plainError(err))
	var u *usageError
	if errors.As(err, &u) {
		fmt.Fprintf(a.env.Stderr, "usage: %s\n", usageLine(cmd))
	}
}

func usageLine(cmd *cobra.Command) string {
	if cmd == nil || !cmd.HasParent() {
		return "mezzo COMMAND [ARG...] (mezzo help lists the commands)"
	}
	return cmd.UseLine()
}

// rootCommand is the tree of commands.
func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "mezzo",
		Short:         "a file system with a log: serve, mount and follow filesets",
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("%q is not a command", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return cmd.Help() },
		PersistentPreRun: func(*cobra.Command, []string) {
			switch {
			case a.verbose >= 2:
				a.level.Set(slog.LevelDebug)
			case a.verbose == 1:
				a.level.Set(slog.LevelInfo)
			}
		},
	}
	root.PersistentFlags().CountVarP(&a.verbose, "verbose", "v", "log changes of state to standard error; twice: every request")
	root.SetIn(a.env.Stdin)
	root.SetOut(a.env.Stdout)
	root.SetErr(a.env.Stderr)
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	for _, c := range a.commands() {
		if c.Args == nil {
			c.Args = wants(c.Use)
		}
		c.DisableFlagsInUseLine = true
		root.AddCommand(c)
	}
	return root
}

// wants checks the number of arguments against the words of a Use line, where
// an argument in square brackets may be absent.
func wants(use string) cobra.PositionalArgs {
	var least, most int
	for _, w := range strings.Fields(use)[1:] {
		most++
		if !strings.HasPrefix(w, "[") {
			least++
		}
	}
	return func(_ *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return usagef("takes %s, not %d", count(least, most), len(args))
		}
		return nil
	}
}

func count(least, most int) string {
	noun := "arguments"
	if most == 1 {
		noun = "argument"
	}
	if least == 0 {
		return fmt.Sprintf("at most %d %s", most, noun)
	}
	if least == most {
		return fmt.Sprintf("%d %s", most, noun)
	}
	return fmt.Sprintf("%d to %d %s", least, most, noun)
}

// version is what the build says of itself.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return info.Main.Version
}

// watchSignals returns a context that ends with the first signal; the second
// runs what onForce was given and ends the process.
func (a *app) watchSignals() (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		for asked := false; ; asked = true {
			select {
			case <-done:
				return
			case s := <-a.env.Signals:
				if asked {
					a.force(s)
				}
				cancel()
			}
		}
	}()
	return ctx, func() {
		close(done)
		<-gone
		cancel()
	}
}

// onForce has f done when a second signal ends the process at once; f must
// not wait for anything. The result takes it back.
func (a *app) onForce(f func()) (remove func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	id := a.next
	a.next++
	a.last[id] = f
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.last, id)
	}
}

func (a *app) force(s os.Signal) {
	if a.env.Exit == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, f := range a.last {
		f()
	}
	code := exitSignal
	if n, ok := s.(syscall.Signal); ok {
		code += int(n)
	}
	a.env.Exit(code)
}

// out prints to standard output.
func (a *app) out(format string, args ...any) {
	fmt.Fprintf(a.env.Stdout, format, args...)
}
