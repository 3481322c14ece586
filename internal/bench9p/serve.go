package bench9p

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/pprof"

	"github.com/hugelgupf/p9/fsimpl/localfs"
	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/kml/tree"
	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/export"
	"github.com/mezzofs/mezzo/p9srv/plain"
)

// serve is the process of a server: it serves dir at socket and at a port of
// loopback, whose address it prints, until its input ends.
func serve(o options, in io.Reader, out io.Writer) (err error) {
	if o.profile != "" {
		f, err := os.Create(o.profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	unix, err := net.Listen("unix", o.socket)
	if err != nil {
		return err
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return errors.Join(err, unix.Close())
	}
	// The process is the server: it lives until its input ends.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	listen, end, err := newServer(ctx, o.serve, o.dir)
	if err != nil {
		return errors.Join(err, unix.Close(), tcp.Close())
	}
	done := make(chan error, 2)
	for _, l := range []net.Listener{unix, tcp} {
		go func() { done <- listen(l) }()
	}
	if _, err := fmt.Fprintln(out, tcp.Addr()); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, in)
	cancel()
	return errors.Join(err, end(), <-done, <-done)
}

// newServer is how to serve a listener until ctx ends, and what is to be done
// then.
func newServer(ctx context.Context, kind, dir string) (listen func(net.Listener) error, end func() error, err error) {
	end = func() error { return nil }
	var a p9.Attacher
	switch kind {
	case kindHugelgupf:
		srv := p9.NewServer(localfs.Attacher(dir))
		return func(l net.Listener) error {
			if err := srv.ServeContext(ctx, l); ctx.Err() == nil {
				return err
			}
			return nil
		}, end, nil
	case kindLocalfs:
		a = localfs.Attacher(dir)
	case kindPlain:
		t, err := plain.Open(dir, plain.Options{})
		if err != nil {
			return nil, nil, err
		}
		a, end = t, t.Close
	case kindJournal:
		t, err := tree.Open(dir, tree.Options{})
		if err != nil {
			return nil, nil, err
		}
		j, err := export.NewJournal(t, export.JournalOptions{Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			return nil, nil, errors.Join(err, t.Close())
		}
		a = export.New(t, export.Options{Ext: j, Door: 1, InPlace: true})
		end = func() error { return errors.Join(j.Close(), t.Close()) }
	default:
		return nil, nil, fmt.Errorf("no server %q", kind)
	}
	srv := p9srv.New(a, p9srv.Options{})
	last := end
	return func(l net.Listener) error { return srv.Serve(ctx, l) },
		func() error { return errors.Join(srv.Close(), last()) }, nil
}
