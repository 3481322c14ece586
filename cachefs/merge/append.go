package merge

import (
	"bytes"
	"errors"
	"io"
)

// ErrNotAppended is contents that were not only appended to.
var ErrNotAppended = errors.New("more was done than to append")

// Version is one version of a file's contents.
type Version struct {
	io.ReaderAt
	Size int64
}

const chunk = 256 << 10

// Append writes theirs, and behind it what ours has more than base. Base has to be
// the beginning of both, else it is ErrNotAppended, before anything is written.
func Append(w io.Writer, base, ours, theirs Version) error {
	for _, v := range []Version{ours, theirs} {
		if v.Size < base.Size {
			return ErrNotAppended
		}
		same, err := equal(base, v, base.Size)
		if err != nil {
			return err
		}
		if !same {
			return ErrNotAppended
		}
	}
	buf := make([]byte, chunk)
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, io.NewSectionReader(theirs, 0, theirs.Size), buf); err != nil {
		return err
	}
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, io.NewSectionReader(ours, base.Size, ours.Size-base.Size), buf)
	return err
}

// equal compares the first n bytes.
func equal(a, b io.ReaderAt, n int64) (bool, error) {
	x, y := make([]byte, chunk), make([]byte, chunk)
	for off := int64(0); off < n; {
		m := min(chunk, n-off)
		if _, err := io.ReadFull(io.NewSectionReader(a, off, m), x[:m]); err != nil {
			return false, err
		}
		if _, err := io.ReadFull(io.NewSectionReader(b, off, m), y[:m]); err != nil {
			return false, err
		}
		if !bytes.Equal(x[:m], y[:m]) {
			return false, nil
		}
		off += m
	}
	return true, nil
}
