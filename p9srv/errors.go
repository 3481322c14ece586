package p9srv

import "errors"

// ErrClosed is returned by Serve and ServeConn of a Server that was closed.
var ErrClosed = errors.New("9P server closed")

// ErrProtocol is wrapped by the error of ServeConn when the client sent what
// leaves no way on: a frame of impossible size, a tag in use.
var ErrProtocol = errors.New("9P protocol error")

// errEnded is the cause of contexts of a session that is over.
var errEnded = errors.New("9P session ended")
