package client

import (
	"context"
	"fmt"
	"io"
	"iter"
	"strings"
	"sync"
	"syscall"

	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/p9srv/wire"
)

// Open opens the file for I/O, with open(2)'s flags in Linux's generic numbers.
// Then the fid cannot be walked from any more.
func (f *Fid) Open(ctx context.Context, flags p9.OpenFlags) (p9.QID, error) {
	if f.c.old() {
		return f.oldOpen(ctx, flags)
	}
	var answer wire.Rlopen
	if err := f.do(ctx, &wire.Tlopen{FID: f.fid, Flags: flags}, &answer, ""); err != nil {
		return p9.QID{}, err
	}
	f.state.Store(&fidState{qid: answer.QID, iounit: answer.IOUnit})
	return answer.QID, nil
}

// Create creates a regular file in the folder f and opens it; f is the new
// file from then on. To keep the folder, use a Clone of it.
func (f *Fid) Create(ctx context.Context, name string, flags p9.OpenFlags, mode p9.FileMode, gid p9.GID) (p9.QID, error) {
	if err := checkStrings(name); err != nil {
		return p9.QID{}, err
	}
	if f.c.old() {
		return f.oldCreate(ctx, name, flags, f.c.oldPerm(mode&0o7777), "")
	}
	var answer wire.Rlcreate
	req := wire.Tlcreate{FID: f.fid, Name: name, Flags: flags, Mode: mode, GID: gid}
	if err := f.do(ctx, &req, &answer, name); err != nil {
		return p9.QID{}, err
	}
	f.state.Store(&fidState{qid: answer.QID, iounit: answer.IOUnit})
	return answer.QID, nil
}

// Read is one read request: it returns what the server answers it with, at
// most IOSize bytes, and 0 bytes without an error at the end of the file. Use
// it for files that wait, where ReadAt would wait until p is full.
func (f *Fid) Read(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, &Error{Op: "read", Errno: syscall.EINVAL}
	}
	p = p[:min(len(p), f.IOSize())]
	if f.closed.Load() {
		return 0, f.unusable(&wire.Tread{})
	}
	var answer wire.Rread
	req := wire.Tread{FID: f.fid, Offset: uint64(off), Count: uint32(len(p))}
	err := f.c.roundTrip(ctx, request{msg: &req, resp: &answer, dst: p, fid: wire.NoFID})
	if err != nil {
		return 0, err
	}
	return len(answer.Data), nil
}

// ReadAt fills p from the offset on with as many requests as it takes, one
// after the other. At the end of the file it returns what there is and io.EOF.
func (f *Fid) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := f.Read(ctx, p[done:], off+int64(done))
		done += n
		if err != nil {
			return done, err
		}
		if n == 0 {
			return done, io.EOF
		}
	}
	return done, nil
}

// Write is one write request, of at most IOSize bytes of p. It returns how many
// the server took.
func (f *Fid) Write(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, &Error{Op: "write", Errno: syscall.EINVAL}
	}
	p = p[:min(len(p), f.IOSize())]
	var answer wire.Rwrite
	if err := f.do(ctx, &wire.Twrite{FID: f.fid, Offset: uint64(off), Data: p}, &answer, ""); err != nil {
		return 0, err
	}
	if int64(answer.Count) > int64(len(p)) {
		return 0, f.c.violated("Rwrite took %d bytes of %d", answer.Count, len(p))
	}
	return int(answer.Count), nil
}

// WriteAt writes p at the offset with as many requests as it takes, one after
// the other. An error comes with the number of bytes written before it.
func (f *Fid) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := f.Write(ctx, p[done:], off+int64(done))
		done += n
		if err != nil {
			return done, err
		}
		if n == 0 {
			return done, fmt.Errorf("9p write: %w", io.ErrShortWrite)
		}
	}
	return done, nil
}

// ReadFull is ReadAt with up to inFlight requests at a time. The count is that
// of the bytes read without a gap from the start of p.
func (f *Fid) ReadFull(ctx context.Context, p []byte, off int64, inFlight int) (int, error) {
	return f.parallel(ctx, p, off, inFlight, f.ReadAt)
}

// WriteFull is WriteAt with up to inFlight requests at a time, which the
// server may do in any order. The count is that of the bytes written without a
// gap from the start of p; after an error bytes behind it may be written too.
func (f *Fid) WriteFull(ctx context.Context, p []byte, off int64, inFlight int) (int, error) {
	return f.parallel(ctx, p, off, inFlight, f.WriteAt)
}

func (f *Fid) parallel(ctx context.Context, p []byte, off int64, inFlight int,
	op func(context.Context, []byte, int64) (int, error)) (int, error) {
	chunk := f.IOSize()
	chunks := (len(p) + chunk - 1) / chunk
	workers := min(inFlight, chunks)
	if workers <= 1 {
		return op(ctx, p, off)
	}
	var (
		wg       sync.WaitGroup
		mu       sync.Mutex
		next     int
		good     = len(p) // bytes without a gap
		firstErr error
	)
	for range workers {
		wg.Go(func() {
			for {
				mu.Lock()
				at := next * chunk
				if at >= good {
					mu.Unlock()
					return // all given out, or behind an error
				}
				next++
				mu.Unlock()
				part := p[at:min(at+chunk, len(p))]
				n, err := op(ctx, part, off+int64(at))
				mu.Lock()
				if err != nil && (at+n < good || firstErr == nil) {
					good, firstErr = at+n, err
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return good, firstErr
}

// Readdir is one request for entries of an open folder: those behind the entry
// whose Offset is given (0: from the start), as many as fit count bytes. No
// entries without an error are the end. Servers list "." and ".." too.
func (f *Fid) Readdir(ctx context.Context, offset uint64, count uint32) (p9.Dirents, error) {
	count = min(count, uint32(f.IOSize()))
	if f.closed.Load() {
		return nil, f.unusable(&wire.Treaddir{})
	}
	if f.c.old() {
		return f.oldReaddir(ctx, offset, count)
	}
	var answer wire.Rreaddir
	req := wire.Treaddir{FID: f.fid, Offset: offset, Count: count}
	err := f.c.roundTrip(ctx, request{msg: &req, resp: &answer, dst: make([]byte, count), fid: wire.NoFID})
	if err != nil {
		return nil, err
	}
	var all p9.Dirents
	for data := answer.Data; len(data) > 0; {
		var d p9.Dirent
		d, data, err = wire.NextDirent(data)
		if err != nil {
			return nil, f.c.violated("Rreaddir: %v", err)
		}
		if d.Name == "" || strings.ContainsAny(d.Name, "/\x00") {
			return nil, f.c.violated("Rreaddir has the name %q", d.Name)
		}
		all = append(all, d)
	}
	return all, nil
}

// direntBytes is the size of one request for entries.
const direntBytes = 64 << 10

// Entries iterates over an open folder from its start, without "." and "..".
// An error ends it.
func (f *Fid) Entries(ctx context.Context) iter.Seq2[p9.Dirent, error] {
	return func(yield func(p9.Dirent, error) bool) {
		offset := uint64(0)
		for {
			part, err := f.Readdir(ctx, offset, direntBytes)
			if err != nil {
				yield(p9.Dirent{}, err)
				return
			}
			if len(part) == 0 {
				return
			}
			for _, d := range part {
				if d.Name != "." && d.Name != ".." && !yield(d, nil) {
					return
				}
			}
			last := part[len(part)-1].Offset
			if last == offset {
				yield(p9.Dirent{}, f.c.violated("Rreaddir stays at offset %d", offset))
				return
			}
			offset = last
		}
	}
}

// FSync brings the open file to stable storage; with datasync only what
// reading it back needs, as fdatasync(2).
func (f *Fid) FSync(ctx context.Context, datasync bool) error {
	if f.c.old() {
		return f.oldWstat(ctx, f.c.unchanged()) // stat(5): then it is to stable storage
	}
	req := wire.Tfsync{FID: f.fid}
	if datasync {
		req.Datasync = 1
	}
	return f.do(ctx, &req, &wire.Rfsync{}, "")
}
