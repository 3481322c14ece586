package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// readyEnv names, for a process that is to stay behind in the background, the
// descriptor on which it tells its parent that it is ready.
const readyEnv = "MEZZO_READY_FD"

// errSilent ends the process with a code after somebody else has said why.
type errSilent struct{ code int }

func (e errSilent) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// background runs the program again with args as a process of its own session,
// and returns when that is ready, or has failed and said why on the same
// standard error.
func (a *app) background(ctx context.Context, args []string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	// Its own path, so that it is called mezzo in ps(1) and not exe; the link
	// when the file was replaced meanwhile.
	path, err := os.Executable()
	if _, gone := os.Stat(path); err != nil || gone != nil {
		path = "/proc/self/exe"
	}
	cmd := exec.Command(path)
	// A mount helper's name means another command line.
	name := strings.Replace(a.env.Args[0], mountHelper, "mezzo", 1)
	cmd.Args = append([]string{name}, args...)
	// The first of ExtraFiles is descriptor 3 over there.
	cmd.ExtraFiles = []*os.File{w}
	cmd.Env = append(os.Environ(), readyEnv+"=3")
	cmd.Stderr = a.env.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	if n, _ := io.ReadFull(r, make([]byte, 1)); n == 1 {
		return cmd.Process.Release()
	}
	err = cmd.Wait()
	var ee *exec.ExitError
	switch {
	case errors.As(err, &ee) && ee.ExitCode() > 0:
		return errSilent{ee.ExitCode()}
	case err != nil:
		return fmt.Errorf("the process in the background ended early: %w", err)
	}
	return ctx.Err() // it was asked to end before it was ready, and did
}

// ready tells the parent, when there is one that waits, and lets go of its
// terminal: from now on what is written to standard error goes to the file
// logTo.
func (a *app) ready(logTo string) error {
	fd, err := strconv.Atoi(a.env.Getenv(readyEnv))
	if err != nil {
		return nil // in the foreground
	}
	log, err := openDaemonLog(logTo)
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for _, std := range []struct{ from, to int }{{int(null.Fd()), 0}, {int(null.Fd()), 1}, {int(log.Fd()), 2}} {
		if err := unix.Dup3(std.from, std.to, 0); err != nil {
			return os.NewSyscallError("dup3", err)
		}
	}
	pipe := os.NewFile(uintptr(fd), "ready")
	_, err = pipe.Write([]byte{1})
	return errors.Join(err, pipe.Close())
}

// maxDaemonLog is the size, in bytes, over which an old log is begun anew.
const maxDaemonLog = 1 << 20

func openDaemonLog(path string) (*os.File, error) {
	flags := os.O_WRONLY | os.O_CREATE | os.O_APPEND
	if st, err := os.Stat(path); err == nil && st.Size() > maxDaemonLog {
		flags |= os.O_TRUNC
	}
	return os.OpenFile(path, flags, 0o600)
}
