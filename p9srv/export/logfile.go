package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/google/renameio/v2"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// textLog is the log as text, a line a record, kept in a file that grows as it
// is looked at: its size is known without rendering, and nothing is rendered
// twice. The file is a cache. It is taken up again after a clean end, which a
// note beside it tells (how far it reaches, and the log's CRC there); else it is
// made anew.
type textLog struct {
	log  *kml.Log
	path string

	mu   sync.Mutex
	f    *os.File
	r    *kml.Reader
	n    int64 // bytes of whole lines
	shut bool
}

// textChunk is how much is rendered between two writes, in bytes.
const textChunk = 256 << 10

// update renders what the log has got since the last time, and returns the
// size.
func (x *textLog) update() (int64, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.shut {
		return 0, kml.ErrClosed
	}
	if err := x.open(); err != nil {
		return 0, err
	}
	var b []byte
	for {
		r, err := x.r.TryNext()
		if err == nil {
			b = append(kml.AppendText(b, r), '\n')
		}
		if len(b) >= textChunk || err != nil && len(b) > 0 {
			if werr := x.write(b); werr != nil {
				return 0, werr
			}
			b = b[:0]
		}
		switch {
		case errors.Is(err, io.EOF):
			return x.n, nil
		case errors.Is(err, kml.ErrTruncated), errors.Is(err, kml.ErrHistoryCut):
			x.drop() // the next look begins anew
			return 0, err
		case err != nil:
			return 0, err
		}
	}
}

// write appends whole lines; what a failure left half is written over by the
// next, which begins anew.
func (x *textLog) write(b []byte) error {
	if _, err := x.f.WriteAt(b, x.n); err != nil {
		x.drop()
		return err
	}
	x.n += int64(len(b))
	return nil
}

// open takes the file up, or begins it anew.
func (x *textLog) open() error {
	if x.f != nil {
		return nil
	}
	f, err := os.OpenFile(x.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	n, r := x.resume(f)
	if r == nil {
		if r, err = x.log.ReaderAfter(x.log.Start()); err != nil {
			f.Close()
			return err
		}
	}
	if err := f.Truncate(n); err != nil {
		r.Close()
		f.Close()
		return err
	}
	x.f, x.r, x.n = f, r, n
	return nil
}

// note is the file that tells of a clean end.
func (x *textLog) note() string { return x.path + ".end" }

// resume finds out whether f can be taken up, where it ends, and reads the note
// only once. A text that begins before the log does is not taken up: retention
// is for both.
func (x *textLog) resume(f *os.File) (int64, *kml.Reader) {
	b, err := os.ReadFile(x.note())
	if err != nil || os.Remove(x.note()) != nil {
		return 0, nil
	}
	var n int64
	var first, last kml.Position
	var crc uint32
	if _, err := fmt.Sscanf(string(b), "%d %d %d %d\n", &n, &first, &last, &crc); err != nil || first != x.log.Start() {
		return 0, nil
	}
	st, err := f.Stat()
	if err != nil || st.Size() < n {
		return 0, nil
	}
	r, err := x.log.ReaderAfter(last)
	if err != nil {
		return 0, nil
	}
	if r.CRC() != crc {
		r.Close()
		return 0, nil
	}
	return n, r
}

// drop gives the file up.
func (x *textLog) drop() {
	if x.f != nil {
		x.r.Close()
		x.f.Close()
		x.f, x.r, x.n = nil, nil, 0
	}
}

// close leaves the file so that it can be taken up.
func (x *textLog) close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.shut = true
	if x.f == nil {
		return nil
	}
	defer x.drop()
	if err := x.f.Sync(); err != nil {
		return err
	}
	note := fmt.Sprintf("%d %d %d %d\n", x.n, x.log.Start(), x.r.Pos(), x.r.CRC())
	return renameio.WriteFile(x.note(), []byte(note), 0o600)
}

// size is how long the text is now.
func (x *textLog) size(context.Context) (uint64, error) {
	n, err := x.update()
	return uint64(n), err
}

// readAt reads the text; at its known end it looks for more.
func (x *textLog) readAt(p []byte, off int64) (int, error) {
	x.mu.Lock()
	known := x.n
	x.mu.Unlock()
	if off+int64(len(p)) > known {
		n, err := x.update()
		if err != nil {
			return 0, err
		}
		known = n
	}
	if off >= known {
		return 0, nil
	}
	x.mu.Lock()
	f := x.f
	x.mu.Unlock()
	if f == nil {
		return 0, kml.ErrClosed
	}
	n, err := f.ReadAt(p[:min(int64(len(p)), known-off)], off)
	if n > 0 || errors.Is(err, io.EOF) {
		return n, nil
	}
	return 0, err
}

type logHandle struct {
	readOnly
	x *textLog
}

func (j *Journal) openLog(ctx context.Context, c *tree.Cred, flags int) (tree.ExtHandle, error) {
	if err := only(flags); err != nil {
		return nil, err
	}
	if _, err := j.may(ctx, c, RightFollow, "log"); err != nil {
		return nil, err
	}
	return &logHandle{x: j.text}, nil
}

// ReadAt reads the log as text. Lines that were not there at the open are read
// on with.
func (h *logHandle) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return h.x.readAt(p, off)
}
