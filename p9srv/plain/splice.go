package plain

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// PipeSize says how much of a read can be spliced: all of it, or nothing. In place
// that is what the page cache has. A File that runs as a user has opened its file
// as that user; nothing more is checked at a read.
func (f *File) PipeSize(off int64, n int) int {
	if f.fd < 0 || f.n.typ != unix.S_IFREG {
		return 0
	}
	// Nothing else uses the descriptor's offset.
	size, err := unix.Seek(f.fd, 0, unix.SEEK_END)
	if err != nil || off >= size {
		return 0
	}
	n = int(min(int64(n), size-off))
	if f.ctx == nil && !cached(f.fd, off, n) {
		return 0
	}
	return n
}

// ReadToPipe splices.
func (f *File) ReadToPipe(pipe int, off int64, n int) (int, error) {
	done := 0
	for done < n {
		at := off + int64(done)
		k, err := unix.Splice(f.fd, &at, pipe, nil, n-done, unix.SPLICE_F_NONBLOCK)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN && done > 0:
			return done, nil // the pipe is full
		case err != nil:
			return done, err
		case k <= 0:
			return done, nil
		}
		done += int(k)
	}
	return done, nil
}

// cached says that the page cache has a range of a file (cachestat(2), since
// Linux 6.5).
func cached(fd int, off int64, n int) bool {
	area := struct{ off, len uint64 }{uint64(off), uint64(n)}
	var st struct{ cache, dirty, writeback, evicted, recent uint64 }
	_, _, errno := unix.Syscall6(unix.SYS_CACHESTAT, uintptr(fd), uintptr(unsafe.Pointer(&area)), uintptr(unsafe.Pointer(&st)), 0, 0, 0)
	if errno != 0 {
		return false
	}
	page := uint64(unix.Getpagesize())
	return st.cache >= (uint64(off)%page+uint64(n)+page-1)/page
}
