package cli

import (
	"context"
	"errors"
	"net"
	"sync"

	"github.com/mezzofs/mezzo/p9srv"
)

// server is a tree that is served at its listeners.
type server struct {
	listeners []net.Listener // of a fileset, the first is the socket's
	access    access
	insecure  bool
	// attacher makes the tree as it is served where users' numbers may be
	// trusted, or where they are only claimed.
	attacher func(trusted bool) attacher
}

// addresses are where the server listens.
func (s *server) addresses() []address {
	var all []address
	for _, l := range s.listeners {
		all = append(all, addressOf(l.Addr()))
	}
	return all
}

// printKernelMounts tells how the kernel's own client mounts what is served.
func (s *server) printKernelMounts(a *app) {
	for _, at := range s.addresses() {
		a.out("  %s\n", at.kernelMount("MNT", s.access.engine.MaxMessageSize, s.access.readOnly))
	}
}

// serve answers at every listener until ctx ends, and returns when all is
// over. The first listener that fails ends the others.
func (s *server) serve(ctx context.Context, a *app) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(s.listeners))
	o := s.access.engine
	o.Log = a.log
	if a.verbose >= 2 {
		o.Trace = func(conn uint64, line string) { a.log.Debug("9p message", "conn", conn, "message", line) }
	}
	var wg sync.WaitGroup
	for i, l := range s.listeners {
		srv := p9srv.New(s.at(l), o)
		wg.Go(func() {
			defer cancel()
			errs[i] = srv.Serve(ctx, l)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// at is the tree as it is served at l: who may attach depends on what the
// transport proves.
func (s *server) at(l net.Listener) attacher {
	trusted := s.insecure && l.Addr().Network() != "unix"
	at := s.attacher(trusted)
	if trusted {
		return at
	}
	if !s.access.shared() {
		at = ownUser{at}
	}
	if tcp, ok := l.Addr().(*net.TCPAddr); ok {
		at = loopbackProof{attacher: at, own: tcp.AddrPort(), owner: socketOwner}
	}
	return at
}
