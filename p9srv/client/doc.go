// Package client is a 9P client, of 9P2000.L and, where Options.Versions wants it,
// 9P2000.u and 9P2000: many requests in flight on one
// connection, a context for each, and a typed error when the connection goes.
//
//	c, err := client.Dial(ctx, "unix!/run/files.sock", client.Options{})
//	root, err := c.Attach(ctx, "alice", 1000, "/")
//	f, _, err := root.Walk(ctx, "etc", "motd")
//	_, err = f.Open(ctx, p9.ReadOnly)
//	n, err := f.ReadAt(ctx, buf, 0)
//	err = f.Clunk(ctx)
//
// # Concurrency
//
// Every method of Conn and Fid may be called at any time from any goroutine,
// but what a server does with two requests on one fid that arrive together is
// the server's affair. A connection has three goroutines, all owned by it and
// waited for by Close: a reader, which hands answers to their callers; a
// writer, which sends with one system call whatever requests have come
// together; a monitor, which watches for silence.
//
// One lock, Conn.mu, guards the table of requests and the bytes to be sent. No
// I/O is done under it and no other lock is taken under it.
//
// # Cancellation
//
// When a call's context ends, the client sends Tflush and waits for the
// server's word, so that the caller knows what happened: if the answer comes
// first, the call returns it as if nothing had been, because the request was
// done; if Rflush comes first it returns the context's error. A server that
// says neither within Options.Grace is waited for no longer: the call returns
// the context's error, the request counts as in flight until the server
// speaks, and a fid that the request turns out to have made is given back.
//
// # Silence
//
// A server may take its time over a request, and a read of a stream file waits
// for hours; so silence alone proves nothing. After half of Options.Timeout
// without a byte from a server that owes an answer, the client asks for a sign of life:
// a Tflush of a tag that is not in use, which a server answers at once
// (flush(5)). If the other half passes without a byte, the connection
// fails with ErrTimeout and with it every call.
//
// # Errors
//
// The server's refusal is an *Error, and errors.Is finds the errno in it
// (errors.Is(err, syscall.ENOENT), errors.Is(err, fs.ErrNotExist)). The end of
// the connection is a *ConnError, which every call in flight and every later
// one gets at once; it wraps ErrClosed, ErrProtocol, ErrTimeout, or the
// system's error. A server is not trusted: a frame that is malformed, larger
// than agreed, or answers nothing that was asked ends the connection with
// ErrProtocol.
package client
