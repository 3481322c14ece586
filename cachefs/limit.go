package cachefs

import (
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// MinBandwidth is the least that Options.Bandwidth can be, in bytes a second:
// with less an answer takes longer than a link may be silent.
const MinBandwidth = 4 << 10

// ParseBandwidth reads a number of bytes a second, with K, M or G for 1024,
// 1024² and 1024³; 0 is no limit.
func ParseBandwidth(s string) (int64, error) {
	digits, shift := s, 0
	if n := len(s); n > 1 {
		if i := strings.IndexByte("KMG", strings.ToUpper(s[n-1:])[0]); i >= 0 {
			digits, shift = s[:n-1], 10*(i+1)
		}
	}
	n, err := strconv.ParseUint(digits, 10, 62-shift)
	if err != nil {
		return 0, fmt.Errorf("%q is not a number of bytes a second, as 200K", s)
	}
	v := int64(n) << shift
	if v != 0 && v < MinBandwidth {
		return 0, fmt.Errorf("%q is less than %d bytes a second", s, MinBandwidth)
	}
	return v, nil
}

// rate shares a number of bytes a second among connections. Those that are
// urgent go first.
type rate struct {
	mu      sync.Mutex // guards what follows
	perSec  int64      // 0: no limit
	free    time.Time  // when what was let go has gone
	urgent  int        // waiters
	changed chan struct{}
}

// tick is how much may go in one go, in time.
const tick = 50 * time.Millisecond

func newRate(perSec int64) *rate { return &rate{perSec: perSec, changed: make(chan struct{})} }

func (r *rate) set(perSec int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.perSec, r.free = perSec, time.Time{}
	r.wake()
}

func (r *rate) get() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.perSec
}

// wake wakes who waits. The caller holds mu.
func (r *rate) wake() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// wait waits for its turn and says how many of n bytes may go; false when done
// is closed. The caller spends what goes.
func (r *rate) wait(n int, urgent bool, done <-chan struct{}) (int, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.perSec > 0 && urgent {
		r.urgent++
		defer func() {
			r.urgent--
			r.wake()
		}()
	}
	for {
		if r.perSec == 0 {
			return n, true
		}
		left := time.Until(r.free)
		if left <= 0 && (urgent || r.urgent == 0) {
			return min(n, max(int(r.perSec*int64(tick)/int64(time.Second)), 256)), true
		}
		changed := r.changed
		r.mu.Unlock()
		t := time.NewTimer(max(left, time.Millisecond))
		ok := true
		select {
		case <-t.C:
		case <-changed:
		case <-done:
			ok = false
		}
		t.Stop()
		r.mu.Lock()
		if !ok {
			return 0, false
		}
	}
}

// spend notes that n bytes went.
func (r *rate) spend(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.perSec == 0 || n <= 0 {
		return
	}
	if now := time.Now(); r.free.Before(now) {
		r.free = now
	}
	r.free = r.free.Add(time.Duration(int64(n) * int64(time.Second) / r.perSec))
}

// limited is a connection that shares a limit with others.
type limited struct {
	io.ReadWriteCloser
	up, down *rate
	urgent   bool
	once     sync.Once
	done     chan struct{}
}

func newLimited(c io.ReadWriteCloser, up, down *rate, urgent bool) *limited {
	return &limited{ReadWriteCloser: c, up: up, down: down, urgent: urgent, done: make(chan struct{})}
}

// Write is io.Writer's.
func (l *limited) Write(p []byte) (int, error) {
	for n := 0; ; {
		k, ok := l.up.wait(len(p)-n, l.urgent, l.done)
		if !ok {
			return n, net.ErrClosed
		}
		m, err := l.ReadWriteCloser.Write(p[n : n+k])
		l.up.spend(m)
		if n += m; err != nil || n == len(p) {
			return n, err
		}
	}
}

// Read is io.Reader's.
func (l *limited) Read(p []byte) (int, error) {
	k, ok := l.down.wait(len(p), l.urgent, l.done)
	if !ok {
		return 0, net.ErrClosed
	}
	n, err := l.ReadWriteCloser.Read(p[:k])
	l.down.spend(n)
	return n, err
}

// Close is io.Closer's: it ends reads and writes that wait.
func (l *limited) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.ReadWriteCloser.Close()
}

// limit is the wrapper that shares the client's limits.
func (c *Client) limit(urgent bool) wrapper {
	return func(rwc io.ReadWriteCloser) io.ReadWriteCloser { return newLimited(rwc, c.out, c.in, urgent) }
}

// SetBandwidth bounds how many bytes a second go each way from now on; 0 is no
// limit.
func (c *Client) SetBandwidth(perSec int64) error {
	if perSec != 0 && perSec < MinBandwidth {
		return fmt.Errorf("a limit of %d bytes a second is less than %d: %w", perSec, MinBandwidth, syscall.EINVAL)
	}
	c.out.set(perSec)
	c.in.set(perSec)
	return nil
}
