package fusefs

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// A program that opens a name while another renames a file over it gets, on a
// local file system, the old file or the new one. Through FUSE the kernel has
// the old one's node from the lookup and asks to open an object that is gone;
// it looks again once, and loses again when the replacing goes on. So the
// readers of a file that was just replaced through this mount still get it.
type limbo struct {
	mu     sync.Mutex
	closed bool
	files  []limboFile // oldest first
	timer  *time.Timer
}

type limboFile struct {
	oid   kml.OID
	h     tree.Handle
	since time.Time
}

// Bounds of the limbo: a replaced file keeps its blocks meanwhile.
const (
	limboFor = 500 * time.Millisecond
	limboMax = 16
)

// victim is a handle on the file that a rename to a name will replace, if
// somebody may be about to open it; else nil.
func (r *raw) victim(c *call, parent kml.OID, name string) tree.Handle {
	a, err := r.fs.Lookup(c, nil, parent, name)
	if err != nil || a.Mode&unix.S_IFMT != unix.S_IFREG || a.Nlink != 1 {
		return nil
	}
	// A file nobody opened here may have to be fetched first.
	if n := r.nodes.current(a.OID); n == nil || !n.used.Load() {
		return nil
	}
	h, err := r.fs.Open(c, nil, a.OID, unix.O_RDONLY)
	if err != nil {
		return nil
	}
	return h
}

// keep takes over a handle on a file that was replaced.
func (l *limbo) keep(h tree.Handle) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		_ = h.Close() // it only reads
		return
	}
	l.files = append(l.files, limboFile{h.OID(), h, time.Now()})
	if l.timer == nil {
		l.timer = time.AfterFunc(limboFor, l.sweep)
	}
	var out []limboFile
	if n := len(l.files) - limboMax; n > 0 {
		out, l.files = l.files[:n:n], l.files[n:]
	}
	l.mu.Unlock()
	closeLimbo(out)
}

// take gives a kept file to a reader, or nil.
func (l *limbo) take(oid kml.OID) tree.Handle {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, f := range l.files {
		if f.oid == oid {
			l.files = append(l.files[:i:i], l.files[i+1:]...)
			return f.h
		}
	}
	return nil
}

// sweep closes what is old. It runs on the timer.
func (l *limbo) sweep() {
	l.mu.Lock()
	n := 0
	for n < len(l.files) && time.Since(l.files[n].since) >= limboFor {
		n++
	}
	out := l.files[:n:n]
	l.files = l.files[n:]
	l.timer = nil
	if len(l.files) > 0 && !l.closed {
		l.timer = time.AfterFunc(limboFor, l.sweep)
	}
	l.mu.Unlock()
	closeLimbo(out)
}

// close ends the limbo.
func (l *limbo) close() {
	l.mu.Lock()
	l.closed = true
	out := l.files
	l.files = nil
	if l.timer != nil {
		l.timer.Stop()
	}
	l.mu.Unlock()
	closeLimbo(out)
}

func closeLimbo(files []limboFile) {
	for _, f := range files {
		_ = f.h.Close() // it only reads
	}
}
