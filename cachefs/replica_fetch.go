package cachefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/chunks"
	"github.com/mezzofs/mezzo/kml/tree"
)

// wants are the objects that the directory lacks, each once. One that failed
// waits for a while.
type wants struct {
	mu    sync.Mutex
	list  []kml.OID
	in    map[kml.OID]bool      // in list
	busy  map[kml.OID]bool      // being fetched; true: asked for again meanwhile
	later map[kml.OID]time.Time // failed, not to be tried before
	tries map[kml.OID]int
	ready chan struct{} // closed when something can be fetched
	still chan struct{} // closed when nothing is wanted any more
}

func (w *wants) init() {
	w.in, w.busy = make(map[kml.OID]bool), make(map[kml.OID]bool)
	w.later, w.tries = make(map[kml.OID]time.Time), make(map[kml.OID]int)
	w.ready, w.still = make(chan struct{}), make(chan struct{})
}

func (w *wants) add(oid kml.OID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, busy := w.busy[oid]; busy {
		w.busy[oid] = true
		return
	}
	delete(w.later, oid)
	if !w.in[oid] {
		w.in[oid] = true
		w.list = append(w.list, oid)
		w.signal()
	}
}

func (w *wants) signal() {
	close(w.ready)
	w.ready = make(chan struct{})
}

// wake has those who wait look again.
func (w *wants) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for oid := range w.later {
		delete(w.later, oid)
		if !w.in[oid] {
			w.in[oid] = true
			w.list = append(w.list, oid)
		}
	}
	w.signal()
}

// take is the next object to be fetched; when there is none, what to wait for and
// how long at most (0: for ever).
func (w *wants) take(now time.Time) (oid kml.OID, ready <-chan struct{}, next time.Duration, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for oid, when := range w.later {
		d := when.Sub(now)
		if d <= 0 {
			delete(w.later, oid)
			if !w.in[oid] {
				w.in[oid] = true
				w.list = append(w.list, oid)
			}
		} else if next == 0 || d < next {
			next = d
		}
	}
	if len(w.list) == 0 {
		return 0, w.ready, next, false
	}
	oid, w.list = w.list[0], w.list[1:]
	delete(w.in, oid)
	w.busy[oid] = false
	return oid, nil, 0, true
}

// done ends a fetch; one that failed is tried again later.
func (w *wants) done(oid kml.OID, now time.Time, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	again := w.busy[oid]
	delete(w.busy, oid)
	switch {
	case err != nil && !again:
		n := w.tries[oid]
		w.tries[oid] = n + 1
		w.later[oid] = now.Add(min(100*time.Millisecond<<min(n, 9), 30*time.Second))
		w.signal()
	case again:
		if !w.in[oid] {
			w.in[oid] = true
			w.list = append(w.list, oid)
		}
		w.signal()
	default:
		delete(w.tries, oid)
	}
	if len(w.list)+len(w.busy)+len(w.later) == 0 {
		close(w.still)
		w.still = make(chan struct{})
	}
}

// open is how many objects are wanted, and how many of them failed last.
func (w *wants) open() (n, failed int, still <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.list) + len(w.busy) + len(w.later), len(w.later), w.still
}

// fetchLoop brings what is wanted, one after the other, while there is a link.
func (r *Replica) fetchLoop(ctx context.Context) {
	for ctx.Err() == nil {
		r.mu.Lock()
		up, open, changed := r.up, r.open && !r.tree.Doubtful(), r.changed
		r.mu.Unlock()
		if up == nil || !open {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		oid, ready, next, ok := r.want.take(r.o.Now())
		if !ok {
			var timer <-chan time.Time
			if next > 0 {
				timer = time.After(next)
			}
			select {
			case <-ready:
			case <-timer:
			case <-up.ctx.Done():
				wait(ctx, 10*time.Millisecond)
			case <-ctx.Done():
			}
			continue
		}
		err := r.fetchOne(ctx, up, oid)
		r.want.done(oid, r.o.Now(), err)
		r.mu.Lock()
		r.signal()
		r.mu.Unlock()
	}
}

// fetchOne brings one object, and notes why it cannot.
func (r *Replica) fetchOne(ctx context.Context, up *upstream, oid kml.OID) error {
	r.use.RLock()
	defer r.use.RUnlock()
	bound, stop := up.bind(ctx)
	defer stop()
	if bound.Err() != nil { // the directory may be closed
		return bound.Err()
	}
	err := r.bring(bound, up, oid, 0)
	if err != nil && bound.Err() == nil {
		r.tree.Trouble(oid, err)
	}
	return err
}

// hold opens what is here of a file; see offers.
func (r *Replica) hold(oid kml.OID, v kml.Position) (*tree.Held, error) {
	r.use.RLock()
	defer r.use.RUnlock()
	r.mu.Lock()
	t := r.tree
	r.mu.Unlock()
	if t == nil {
		return nil, os.ErrNotExist
	}
	return t.Hold(oid, v)
}

// bring completes one object, its folder first.
func (r *Replica) bring(ctx context.Context, up *upstream, oid kml.OID, depth int) error {
	w, err := r.tree.Want(oid)
	if w == nil || err != nil {
		return err
	}
	if w.NoFolder {
		if depth > 4096 {
			return syscall.ELOOP
		}
		if err := r.bring(ctx, up, w.Parent, depth+1); err != nil {
			return err
		}
	}
	if w.Redress {
		xs, err := r.xattrs(ctx, up, oid)
		if err == nil {
			err = r.tree.Redress(oid, xs)
		}
		return err
	}
	var b fetched
	if !w.Here {
		if b.Xattrs, err = r.xattrs(ctx, up, oid); err != nil {
			return err
		}
	}
	if w.Mode&unix.S_IFMT == unix.S_IFREG {
		if err := r.fetch(ctx, up, w, &b); err != nil {
			return err
		}
		if err := r.tree.Reach(ctx, b.Version); err != nil {
			return err
		}
	}
	fault.Point("replica.fetched")
	err = r.tree.Bring(ctx, oid, b.Brought)
	if errors.Is(err, tree.ErrNotFound) {
		return nil // the master removed it
	}
	if err == nil {
		if b.chunks != nil {
			r.tree.KeepChunks(oid, b.chunks, b.Version)
		}
		if left, e := r.tree.Want(oid); e == nil && left != nil {
			r.want.add(oid) // a later version is there by now
		}
	}
	return err
}

// xattrs asks for an object's extended attributes.
func (r *Replica) xattrs(ctx context.Context, up *upstream, oid kml.OID) ([]kml.Xattr, error) {
	f, err := up.open(ctx, up.calls, unix.O_RDWR, "snapshot")
	if err != nil {
		return nil, err
	}
	s := &stream{f: f}
	defer s.close()
	snap, err := readSnapshot(ctx, s, oid, 0)
	if err != nil {
		return nil, err
	}
	if len(snap.entries) == 0 {
		return nil, syscall.ESTALE
	}
	return snap.entries[0].Record.Xattrs, nil
}

// Sizes of a fetch, in bytes.
const (
	fetchPiece = 8 << 20 // fetched at a time, and then written
	fetchPart  = 1 << 20 // of it asked for at a time, the parts side by side
)

// fetched is what was fetched of an object, and the hash tree of its contents
// when that is known.
type fetched struct {
	tree.Brought
	chunks *chunks.Tree
}

// fetch brings the contents of a file into the stage.
func (r *Replica) fetch(ctx context.Context, up *upstream, w *tree.Want, b *fetched) error {
	f, err := up.calls.Open(ctx, unix.O_RDONLY, "oid", fmt.Sprintf("%016x", uint64(w.OID)))
	if errors.Is(err, syscall.ENOENT) {
		err = syscall.ESTALE
	}
	if err != nil {
		return err
	}
	defer f.Close()
	size, version, err := f.Stat(ctx)
	if err != nil {
		return err
	}
	if version&tree.DataDirty != 0 {
		return syscall.ESTALE
	}
	b.Version, b.Mtime = kml.Position(version), r.o.Now().UnixNano()
	b.Staged = fmt.Sprintf("%016x.%016x", uint64(w.OID), version)
	if done, err := r.fetchDelta(ctx, up, f, w, size, b); done || err != nil {
		return err
	}
	return r.fetchWhole(ctx, f, int64(size), b)
}

// fetchWhole goes on where an earlier try with the same version was cut short.
func (r *Replica) fetchWhole(ctx context.Context, f linkFile, size int64, b *fetched) error {
	to, err := os.OpenFile(r.tree.State().Path("stage", b.Staged), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer to.Close()
	st, err := to.Stat()
	if err != nil {
		return err
	}
	at := min(st.Size(), size)
	buf := make([]byte, min(fetchPiece, size-at))
	for at < size {
		p := buf[:min(int64(len(buf)), size-at)]
		if err := readParts(ctx, f, p, at); err != nil {
			return err
		}
		if err := writeSparse(to, p, at, size); err != nil {
			return err
		}
		at += int64(len(p))
		r.progress.bytes.Add(int64(len(p)))
		fault.Point("replica.piece")
	}
	return to.Truncate(size)
}

// readParts fills p from the offset on, with some reads at a time.
func readParts(ctx context.Context, f linkFile, p []byte, off int64) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchPiece / fetchPart)
	for at := 0; at < len(p); at += fetchPart {
		part := p[at:min(at+fetchPart, len(p))]
		g.Go(func() error {
			step, cancel := context.WithTimeout(ctx, callTime)
			defer cancel()
			n, err := f.ReadAt(step, part, off+int64(at))
			if err == nil && n < len(part) {
				err = io.ErrUnexpectedEOF
			}
			return err
		})
	}
	return g.Wait()
}

// writeSparse writes p, less long runs of zeros at places that are not there
// yet: they become holes. The file is afterwards as long as what was written.
func writeSparse(to *os.File, p []byte, off, size int64) error {
	const block = 64 << 10
	for at := 0; at < len(p); {
		end := at
		for end < len(p) && !zeros(p[end:min(end+block, len(p))]) {
			end = min(end+block, len(p))
		}
		if end > at {
			if _, err := to.WriteAt(p[at:end], off+int64(at)); err != nil {
				return err
			}
		}
		at = end
		for at < len(p) && zeros(p[at:min(at+block, len(p))]) {
			at = min(at+block, len(p))
		}
	}
	if st, err := to.Stat(); err != nil || st.Size() >= off+int64(len(p)) {
		return err
	}
	return to.Truncate(off + int64(len(p)))
}

func zeros(b []byte) bool {
	for len(b) >= 8 {
		if b[0]|b[1]|b[2]|b[3]|b[4]|b[5]|b[6]|b[7] != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
