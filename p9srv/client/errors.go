package client

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
)

var (
	// ErrClosed is wrapped by the *ConnError of a connection that was closed
	// from this side.
	ErrClosed = errors.New("connection closed")

	// ErrProtocol is wrapped by the *ConnError of a connection whose server
	// sent what 9P does not allow.
	ErrProtocol = errors.New("9P protocol violated by the server")

	// ErrNot9P is wrapped by the error of Dial and NewConn when what answers
	// does not speak 9P at all.
	ErrNot9P = errors.New("not a 9P server")

	// ErrTimeout is wrapped by the *ConnError of a connection whose server
	// fell silent. It wraps os.ErrDeadlineExceeded.
	ErrTimeout = fmt.Errorf("no sign of life from the server: %w", os.ErrDeadlineExceeded)

	// ErrClunked is wrapped by the error of a call on a Fid that was given
	// back. It wraps os.ErrClosed.
	ErrClunked = fmt.Errorf("fid given back already: %w", os.ErrClosed)

	// ErrTooLong is returned for a request that does not fit a message, such
	// as a name of 100,000 bytes. It wraps ENAMETOOLONG.
	ErrTooLong = fmt.Errorf("request does not fit a 9P message: %w", syscall.ENAMETOOLONG)

	errFlushed = errors.New("flushed")
)

// Error is a request that the server refused.
type Error struct {
	Op    string        // the request's name, like "walk"
	Name  string        // the file name in it, if it has one
	Errno syscall.Errno // the server's reason, in Linux's numbers
	Text  string        // the server's reason, where it has no number: Errno is EIO then
}

// Error implements error.
func (e *Error) Error() string {
	if e.Name != "" {
		return "9p " + e.Op + " " + strconv.Quote(e.Name) + ": " + e.Reason()
	}
	return "9p " + e.Op + ": " + e.Reason()
}

// Reason is the server's reason alone.
func (e *Error) Reason() string {
	if e.Text != "" {
		return e.Text
	}
	return e.Errno.Error()
}

// Unwrap gives the errno, which knows fs.ErrNotExist and its kin.
func (e *Error) Unwrap() error { return e.Errno }

// ConnError is the end of a connection.
type ConnError struct {
	Addr string // of the server, as dialed; empty for NewConn
	Err  error
}

// Error implements error.
func (e *ConnError) Error() string {
	if e.Addr == "" {
		return "9p: " + e.Err.Error()
	}
	return e.Addr + ": " + e.Err.Error()
}

// Unwrap gives the reason.
func (e *ConnError) Unwrap() error { return e.Err }

// VersionError is a server that speaks 9P, but no dialect that was asked for.
type VersionError struct {
	Addr string
	Want string // the first one
	Got  string // the version it offers, "unknown" if none
}

// Error implements error.
func (e *VersionError) Error() string {
	s := "version refused (wanted " + e.Want + ", got " + strconv.Quote(e.Got) + ")"
	if e.Addr != "" {
		return e.Addr + ": " + s
	}
	return s
}

func protocolError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// maxErrno is the largest errno of Linux (MAX_ERRNO in linux/err.h).
const maxErrno = 4095

// errnoOf keeps a server from making nonsense of an error: 0 would read as
// success.
func errnoOf(n uint32) syscall.Errno {
	if n == 0 || n > maxErrno {
		return syscall.EIO
	}
	return syscall.Errno(n)
}
