package cli

import (
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"
)

// Env is what a command may touch of the process it runs in.
type Env struct {
	// Args is the command line, the program's name first.
	Args   []string
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	Getenv func(string) string
	// Signals delivers what ends the command: the first asks, the second
	// forces. Nil delivers none.
	Signals <-chan os.Signal
	// Exit ends the process at once with a code; nil leaves a second signal
	// without effect.
	Exit func(code int)
}

// System is the Env of the process itself, without Exit.
func System() Env {
	// Two places, so that a second signal is not lost while the first is handled.
	sig := make(chan os.Signal, 2)
	signal.Notify(sig, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	return Env{
		Args: os.Args, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Getenv: os.Getenv, Signals: sig,
	}
}

// terminal says whether w is a terminal, where progress may be shown.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
