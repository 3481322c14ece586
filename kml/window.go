package kml

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const windowLen = 64 << 10

// window reads records of one file through a buffer. Bytes it hands out are
// good until its next call.
type window struct {
	f   file
	buf []byte
	off int64 // of buf[0] in the file
}

// reset turns the window to another file.
func (w *window) reset(f file) { w.f, w.buf, w.off = f, w.buf[:0], 0 }

// bytes gives file bytes [off, off+n), or fewer at limit.
func (w *window) bytes(off int64, n int, limit int64) ([]byte, error) {
	if rest := limit - off; int64(n) > rest {
		n = int(max(rest, 0))
	}
	if off >= w.off && off+int64(n) <= w.off+int64(len(w.buf)) {
		i := int(off - w.off)
		return w.buf[i : i+n], nil
	}
	want := int(min(int64(max(n, windowLen)), limit-off))
	if cap(w.buf) < want {
		w.buf = make([]byte, want)
	}
	w.buf = w.buf[:want]
	w.off = off
	got, err := w.f.ReadAt(w.buf, off)
	w.buf = w.buf[:got]
	if got < n {
		if err == nil || errors.Is(err, io.EOF) {
			return w.buf, nil
		}
		return nil, err
	}
	return w.buf[:n], nil
}

// record gives the whole record at off; it must end at or before limit.
// ErrShort: limit or the file's end comes first.
func (w *window) record(off, limit int64) ([]byte, error) {
	b, err := w.bytes(off, 8, limit)
	if err != nil {
		return nil, err
	}
	n, err := recordLen(b)
	if err != nil {
		return nil, err
	}
	if b, err = w.bytes(off, n, limit); err != nil {
		return nil, err
	}
	if len(b) < n {
		return nil, fmt.Errorf("%d of %d bytes: %w", len(b), n, ErrShort)
	}
	return b, nil
}

// recordBefore gives the whole record that ends at off; it must begin at or
// behind floor.
func (w *window) recordBefore(off, floor int64) ([]byte, error) {
	b, err := w.back(off-4, 4, off, floor)
	if err != nil {
		return nil, err
	}
	n := int64(binary.LittleEndian.Uint32(b))
	if n < MinRecord || n > MaxRecord || off-n < floor {
		return nil, fmt.Errorf("length %d at the end: %w", n, ErrCorrupt)
	}
	return w.back(off-n, int(n), off, floor)
}

// back is bytes, but fills the buffer with what lies before limit.
func (w *window) back(off int64, n int, limit, floor int64) ([]byte, error) {
	if off < floor {
		return nil, ErrShort
	}
	if off < w.off || off+int64(n) > w.off+int64(len(w.buf)) {
		if _, err := w.bytes(max(floor, limit-windowLen), max(n, int(min(windowLen, limit-floor))), limit); err != nil {
			return nil, err
		}
		if off < w.off {
			if _, err := w.bytes(off, n, limit); err != nil {
				return nil, err
			}
		}
	}
	b, err := w.bytes(off, n, limit)
	if err == nil && len(b) < n {
		err = ErrShort
	}
	return b, err
}
