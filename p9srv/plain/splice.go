package plain

import (
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/p9srv"
)

// PipeSize says how much of a read can be spliced: all of it, or nothing. In place
// that is what the page cache has. A File that runs as a user has opened its file
// as that user; nothing more is checked at a read.
func (f *File) PipeSize(off int64, n int) int {
	if f.fd < 0 || f.n.typ != unix.S_IFREG {
		return 0
	}
	return p9srv.PipeSize(f.fd, off, n, f.ctx != nil)
}

// ReadToPipe splices.
func (f *File) ReadToPipe(pipe int, off int64, n int) (int, error) {
	return p9srv.SpliceFile(f.fd, pipe, off, n)
}
