package p9srv

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// PipeSize is what PipeReader's method of that name is to return for a regular
// file that is open at fd: all of the read, or 0. With wait false only what the
// page cache has counts.
func PipeSize(fd int, off int64, n int, wait bool) int {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || off < 0 || off >= st.Size {
		return 0
	}
	n = int(min(int64(n), st.Size-off))
	if !wait && !cached(fd, off, n) {
		return 0
	}
	return n
}

// SpliceFile is PipeReader's ReadToPipe for a file that is open at fd.
func SpliceFile(fd, pipe int, off int64, n int) (int, error) {
	done := 0
	for done < n {
		at := off + int64(done)
		k, err := unix.Splice(fd, &at, pipe, nil, n-done, unix.SPLICE_F_NONBLOCK)
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
