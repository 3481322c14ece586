package fusefs

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/mezzofs/mezzo/kml/tree"
)

// call is the context of one request. Most calls never wait and never ask for
// Done, so that costs nothing until then.
type call struct {
	context.Context                 // of the server: the door, the end of the mount
	cancel          <-chan struct{} // any signal to the caller, or the connection's end
	pid             uint32          // the calling thread; 0 when the kernel itself asks
	any             bool            // any signal ends the call, not only a deadly one
	caught          atomic.Bool     // it has waited for the master, see tree.CatchUpper

	mu    sync.Mutex
	ended bool
	done  chan struct{} // closed at the end of the context; nil until asked for
	over  chan struct{} // closed when the request is answered
}

// begin makes the context of a request. end must be called before the answer.
func (r *raw) begin(cancel <-chan struct{}, h *fuse.InHeader) *call {
	return &call{Context: r.base, cancel: cancel, pid: h.Pid}
}

// beginWait is begin for calls that any signal interrupts.
func (r *raw) beginWait(cancel <-chan struct{}, h *fuse.InHeader) *call {
	c := r.begin(cancel, h)
	c.any = true
	return c
}

func (c *call) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	if c.over != nil {
		close(c.over)
	}
}

// Value is the call itself for what wants to tell it that it has caught up.
func (c *call) Value(key any) any {
	if key == tree.CatchUpKey() {
		return c
	}
	return c.Context.Value(key)
}

// CaughtUp is tree.CatchUpper's.
func (c *call) CaughtUp() { c.caught.Store(true) }

// Done starts to watch for the end of the caller.
func (c *call) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		if c.ended {
			return c.Context.Done()
		}
		c.done, c.over = make(chan struct{}), make(chan struct{})
		go c.watch()
	}
	return c.done
}

func (c *call) Err() error {
	c.mu.Lock()
	done := c.done
	c.mu.Unlock()
	if done != nil {
		select {
		case <-done:
			return context.Canceled
		default:
		}
	}
	return c.Context.Err()
}

// watch ends with the call, which waits for nothing else.
func (c *call) watch() {
	select {
	case <-c.over:
		return
	case <-c.Context.Done():
		close(c.done)
		return
	case <-c.cancel:
	}
	// FUSE sends one interrupt for the first signal, whichever it is, and none
	// for a deadly one that follows: look again until the call is over.
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !c.any && !dying(c.pid) {
		select {
		case <-c.over:
			return
		case <-c.Context.Done():
			close(c.done)
			return
		case <-tick.C:
		}
	}
	close(c.done)
}

// dying reports whether a thread has SIGKILL pending, which is what the kernel
// makes of every deadly signal, or is gone. See proc_pid_status(5).
func dying(pid uint32) bool {
	if pid == 0 {
		return true
	}
	text, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(pid), 10) + "/status")
	if err != nil {
		return true
	}
	for _, key := range []string{"SigPnd:", "ShdPnd:"} {
		_, rest, ok := bytes.Cut(text, []byte(key))
		if !ok {
			continue
		}
		line, _, _ := bytes.Cut(rest, []byte("\n"))
		set, err := strconv.ParseUint(string(bytes.TrimSpace(line)), 16, 64)
		if err == nil && set&(1<<8) != 0 {
			return true
		}
	}
	return false
}

// cred is the caller. Its groups are not known; the kernel has used them.
func cred(h *fuse.InHeader) *tree.Cred {
	return &tree.Cred{UID: h.Uid, GID: h.Gid, Checked: true}
}

// panicked keeps a panic of the FS below from ending the program.
func (r *raw) panicked(v any) fuse.Status {
	r.log.Error("operation panicked", slog.String("err", fmt.Sprint(v)), slog.String("stack", string(debug.Stack())))
	return fuse.EIO
}

// caughtUp takes from the kernel what is older than a call that has waited for the
// master.
func (r *raw) caughtUp(c *call) {
	if c.caught.Load() {
		r.queue.barrier(c, false)
	}
}
