package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
)

// The exit codes.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitInUse       = 4
	exitSignal      = 128 // plus the signal's number

	exitMountFailed = 32 // mount(8)'s, for mount.mezzo
)

// problem is an error a user reads: the thing it is about, what went wrong
// with it, and what to do. Err and Remedy are single clauses; Remedy may be
// empty.
type problem struct {
	Thing  string
	Err    error
	Remedy string
	Code   int // zero is exitFailed
}

func (p *problem) Error() string {
	s := plainError(p.Err)
	if p.Thing != "" {
		s = p.Thing + ": " + s
	}
	if p.Remedy != "" {
		s += ": " + p.Remedy
	}
	return s
}

func (p *problem) Unwrap() error { return p.Err }

// usageError is a wrong command line.
type usageError struct{ err error }

func (u *usageError) Error() string { return u.err.Error() }
func (u *usageError) Unwrap() error { return u.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// exitCode is the code err ends the process with.
func exitCode(err error) int {
	var p *problem
	var u *usageError
	var silent errSilent
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &silent):
		return silent.code
	case errors.As(err, &u):
		return exitUsage
	case errors.As(err, &p) && p.Code != 0:
		return p.Code
	}
	return exitFailed
}

// plainError is err without the operation and path that fs.PathError puts in
// front: the line it goes into has named the thing already.
func plainError(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) && err == error(pe) {
		return errnoText(pe.Err)
	}
	return errnoText(err)
}

// errnoText is an error in one line.
func errnoText(err error) string {
	return strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
}

// pathProblem says what is wrong with a path given on the command line.
func pathProblem(path string, err error) error {
	p := &problem{Thing: path, Err: err}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		p.Err, p.Remedy = errors.New("does not exist"), "create it first, or check the path"
	case errors.Is(err, syscall.ENOTDIR):
		p.Err, p.Remedy = errors.New("is not a folder"), "name a folder"
	case errors.Is(err, fs.ErrPermission):
		p.Remedy = "run it as a user who may, or as root"
	case errors.Is(err, syscall.ENOTCONN):
		p.Err, p.Remedy = errors.New("is a mount whose server is gone"), "umount -l "+path
	}
	return p
}
