package client

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// result is what a call in another goroutine returned.
type result struct {
	fid *Fid
	n   int
	err error
}

func goRead(ctx context.Context, root *Fid) <-chan result {
	ch := make(chan result, 1)
	go func() {
		n, err := root.Read(ctx, make([]byte, 10), 0)
		ch <- result{n: n, err: err}
	}()
	return ch
}

func goWalk(ctx context.Context, root *Fid) <-chan result {
	ch := make(chan result, 1)
	go func() {
		f, _, err := root.Walk(ctx, "a")
		ch <- result{fid: f, err: err}
	}()
	return ch
}

// TestFlush has one tag only, so that reuse shows.
func TestFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		flushSeen, mayFlush := make(chan struct{}), make(chan struct{})
		_, root := play(t, Options{Requests: 1}, func(f *fake) {
			tag, _ := want[*wire.Tread](f)
			cancel()
			flushTag, flush := want[*wire.Tflush](f)
			if flush.OldTag != tag || flushTag == tag {
				t.Errorf("Tflush tag %d of %d, the read was %d", flushTag, flush.OldTag, tag)
			}
			close(flushSeen)
			<-mayFlush
			f.send(flushTag, &wire.Rflush{})
			tag, _ = want[*wire.Tread](f)
			f.send(tag, &wire.Rread{Data: []byte("next")})
		})
		first := goRead(ctx, root)
		<-flushSeen
		second := goRead(t.Context(), root)
		synctest.Wait()
		select {
		case r := <-second:
			t.Errorf("the tag was used again before Rflush: %+v", r)
		default:
		}
		close(mayFlush)
		if r := <-first; !errors.Is(r.err, context.Canceled) {
			t.Errorf("the flushed call: %+v", r)
		}
		if r := <-second; r.err != nil || r.n != 4 {
			t.Errorf("the next call: %+v", r)
		}
	})
}

// TestAnswerBeatsFlush has the server answer before it sees the flush.
func TestAnswerBeatsFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		_, root := play(t, Options{Requests: 1}, func(f *fake) {
			tag, _ := want[*wire.Twalk](f)
			cancel()
			flushTag, _ := want[*wire.Tflush](f)
			f.send(tag, &wire.Rwalk{QIDs: make([]p9.QID, 1)})
			f.send(flushTag, &wire.Rflush{})
			tag, _ = want[*wire.Tclunk](f)
			f.send(tag, &wire.Rclunk{})
		})
		r := <-goWalk(ctx, root)
		if r.err != nil {
			t.Fatalf("a call that was done: %v", r.err)
		}
		if err := r.fid.Clunk(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestLateAnswer has a server send an answer behind its Rflush, as one does.
func TestLateAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		clunked := make(chan wire.FID, 1)
		_, root := play(t, Options{}, func(f *fake) {
			tag, walk := want[*wire.Twalk](f)
			cancel()
			flushTag, _ := want[*wire.Tflush](f)
			f.send(flushTag, &wire.Rflush{})
			f.send(tag, &wire.Rwalk{QIDs: make([]p9.QID, 1)})
			tag, clunk := want[*wire.Tclunk](f)
			f.send(tag, &wire.Rclunk{})
			if clunk.FID != walk.NewFID {
				t.Errorf("clunk of %d, the walk made %d", clunk.FID, walk.NewFID)
			}
			clunked <- clunk.FID
		})
		if r := <-goWalk(ctx, root); !errors.Is(r.err, context.Canceled) {
			t.Errorf("the flushed call: %+v", r)
		}
		<-clunked
	})
}

// TestGrace has a server that does not answer Tflush in time.
func TestGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		returned, clunked := make(chan struct{}), make(chan struct{})
		_, root := play(t, Options{Grace: 3 * time.Second}, func(f *fake) {
			tag, walk := want[*wire.Twalk](f)
			flushTag, _ := want[*wire.Tflush](f)
			<-returned
			f.send(tag, &wire.Rwalk{QIDs: make([]p9.QID, 1)})
			clunkTag, clunk := want[*wire.Tclunk](f)
			if clunk.FID != walk.NewFID || clunkTag == tag {
				t.Errorf("clunk of %d with tag %d; the walk made %d with %d", clunk.FID, clunkTag, walk.NewFID, tag)
			}
			f.send(clunkTag, &wire.Rclunk{})
			f.send(flushTag, &wire.Rflush{})
			close(clunked)
		})
		start := time.Now()
		r := <-goWalk(ctx, root)
		if !errors.Is(r.err, context.DeadlineExceeded) || time.Since(start) != 4*time.Second {
			t.Errorf("after %v: %+v", time.Since(start), r)
		}
		close(returned)
		<-clunked
	})
}

func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, root := play(t, Options{Timeout: 20 * time.Second}, func(f *fake) {
			want[*wire.Tread](f)
			io.Copy(io.Discard, f.conn)
		})
		<-time.After(time.Hour) // an idle connection may be silent
		start := time.Now()
		r := <-goRead(t.Context(), root)
		took := time.Since(start)
		if !errors.Is(r.err, ErrTimeout) || took < 15*time.Second || took > 25*time.Second {
			t.Errorf("after %v: %+v", took, r)
		}
		<-c.Done()
	})
}

// TestSlowServer has a server that takes an hour over a read but gives signs of
// life.
func TestSlowServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		probes := 0
		_, root := play(t, Options{Timeout: 20 * time.Second}, func(f *fake) {
			tag, _ := want[*wire.Tread](f)
			for start := time.Now(); time.Since(start) < time.Hour; probes++ {
				probe, flush := want[*wire.Tflush](f)
				if flush.OldTag == tag {
					t.Error("the read was flushed")
				}
				f.send(probe, &wire.Rflush{})
			}
			f.send(tag, &wire.Rread{Data: []byte("at last")})
			io.Copy(io.Discard, f.conn)
		})
		if r := <-goRead(t.Context(), root); r.err != nil || r.n != 7 {
			t.Errorf("%+v", r)
		}
		if probes < 100 || probes > 400 {
			t.Errorf("%d probes in an hour", probes)
		}
	})
}

// TestBlockedServer has a server that reads nothing: calls with a deadline
// must end by it, and the connection in the end.
func TestBlockedServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stop := make(chan struct{})
		c, root := play(t, Options{Timeout: time.Minute}, func(*fake) { <-stop })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wg sync.WaitGroup
		start := time.Now()
		for range 1000 { // more bytes than may be queued, more calls than tags
			wg.Go(func() {
				if _, err := root.Write(ctx, make([]byte, 8000), 0); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("write: %v", err)
				}
			})
		}
		wg.Wait()
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("took %v", took)
		}
		c.mu.Lock()
		queued := len(c.out)
		c.mu.Unlock()
		if queued > maxQueued+1<<16 {
			t.Errorf("%d bytes queued", queued)
		}
		<-c.Done()
		if !errors.Is(c.Err(), ErrTimeout) {
			t.Error(c.Err())
		}
		close(stop)
	})
}

// TestCancelStorm cancels calls at every moment of their lives; the connection
// must stay whole and no fid be left at the server.
func TestCancelStorm(t *testing.T) {
	testutil.CheckLeaks(t)
	dir := t.TempDir()
	rng := testutil.Rand(t)
	waits := make([]time.Duration, 4000)
	for i := range waits {
		waits[i] = time.Duration(rng.Int64N(int64(300 * time.Microsecond)))
	}
	addr, srv := ours(t, dir)
	stormOver(t, dial(t, addr, Options{Requests: 16}), waits)
	// Clunks that nobody waited for may be on their way.
	for deadline := time.Now().Add(time.Minute); srv.Stats().FIDs != 1; {
		if time.Now().After(deadline) {
			t.Fatalf("%d fids at the server, want the root alone", srv.Stats().FIDs)
		}
		<-time.After(time.Millisecond)
	}
	t.Logf("%d of %d requests were flushed", srv.Stats().Flushes, srv.Stats().Requests)
	stormOver(t, dial(t, hugelgupf(t, dir, "unix"), Options{Requests: 16}), waits)
}

func stormOver(t *testing.T, c *Conn, waits []time.Duration) {
	root := attach(t, c, "")
	const workers = 8
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < len(waits); i += workers {
				ctx, cancel := context.WithTimeout(t.Context(), waits[i])
				f, err := root.Clone(ctx)
				cancel()
				if err == nil {
					err = f.Clunk(ctx)
				}
				if err != nil && !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%s: %v", c.Addr(), err)
				}
			}
		})
	}
	wg.Wait()
	if _, _, _, err := root.GetAttr(t.Context(), p9.AttrMaskAll); err != nil {
		t.Errorf("%s: after the storm: %v", c.Addr(), err)
	}
}
