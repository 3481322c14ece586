package tree

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
)

// Slots is a small table in a file: a fixed number of slots, each empty or
// holding a few bytes. It lives in the page cache and outlives a killed process;
// a power cut may take it. The file is allocated whole, so that a full disk
// never stops a Put. Where allocated means that a store into the mapped file
// cannot fail either, the file is mapped; else it is written with pwrite(2). It
// may be used by many goroutines.
type Slots struct {
	f    *os.File
	size int
	free chan int
	left atomic.Int32 // len(old)

	mu  sync.RWMutex   // held for reading by every use of m, for writing by Close
	m   []byte         // the mapped file; nil: it is written
	old map[int][]byte // what the last run left
}

const (
	slotHeader = 8 // u32 length, u32 CRC-32C of the bytes

	// The table begins with "MZSL", then u32 version, number of slots, their size.
	slotsMagic   = "MZSL"
	slotsVersion = 1
	slotsStart   = 16
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// OpenSlots opens or makes a table of n slots for up to size-8 bytes each.
// What the last run left in it is in All, and its slots are taken until they
// are cleared. A slot with a wrong checksum was being written and is empty.
func OpenSlots(path string, n, size int) (*Slots, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	s := &Slots{f: f, size: size, free: make(chan int, n), old: make(map[int][]byte)}
	if err := s.header(n); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, s.at(n)); err != nil && err != unix.EOPNOTSUPP {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if mappable(int(f.Fd())) {
		// Without a mapping the table is slower and as good.
		s.m, _ = unix.Mmap(int(f.Fd()), 0, int(s.at(n)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	for i := range n {
		b, err := s.read(i)
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("%s: slot %d: %w", path, i, err)
		}
		if b != nil {
			s.old[i] = b
		} else {
			s.free <- i
		}
	}
	s.left.Store(int32(len(s.old)))
	return s, nil
}

// mappable is true of file systems that overwrite allocated blocks in place, and
// need no room for it: elsewhere a store into a mapping on a full disk is a
// SIGBUS.
func mappable(fd int) bool {
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) != nil {
		return false
	}
	switch st.Type {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.TMPFS_MAGIC:
		return true
	}
	return false
}

// header writes the head of a new table and checks that of an old one. A power
// cut may leave zeros of a new one, which then has nothing in it.
func (s *Slots) header(n int) error {
	want := append(make([]byte, 0, slotsStart), slotsMagic...)
	for _, v := range []int{slotsVersion, n, s.size} {
		want = binary.LittleEndian.AppendUint32(want, uint32(v))
	}
	var got [slotsStart]byte
	m, err := s.f.ReadAt(got[:], 0)
	if err != nil && err != io.EOF {
		return err
	}
	switch {
	case string(got[:]) == string(want):
		return nil
	case m == 0 || got == [slotsStart]byte{}:
		if err := s.f.Truncate(0); err != nil {
			return err
		}
		_, err := s.f.WriteAt(want, 0)
		return err
	case string(got[:4]) == slotsMagic:
		return fmt.Errorf("a table of version %d with %d slots of %d bytes, want version %d, %d of %d: %w",
			binary.LittleEndian.Uint32(got[4:]), binary.LittleEndian.Uint32(got[8:]), binary.LittleEndian.Uint32(got[12:]),
			slotsVersion, n, s.size, kml.ErrNewer)
	}
	return fmt.Errorf("is no table of slots: %w", unix.EINVAL)
}

// at is where slot i begins.
func (s *Slots) at(i int) int64 { return slotsStart + int64(i)*int64(s.size) }

func (s *Slots) read(i int) ([]byte, error) {
	var h [slotHeader]byte
	if n, err := s.f.ReadAt(h[:], s.at(i)); n < slotHeader {
		return nil, ignoreEOF(err)
	}
	n := int(binary.LittleEndian.Uint32(h[:]))
	if n == 0 || n > s.size-slotHeader {
		return nil, nil
	}
	b := make([]byte, n)
	if m, err := s.f.ReadAt(b, s.at(i)+slotHeader); m < n {
		return nil, ignoreEOF(err)
	}
	if crc32.Checksum(b, castagnoli) != binary.LittleEndian.Uint32(h[4:]) {
		return nil, nil
	}
	return b, nil
}

// Put writes b into a free slot, and waits for one until ctx ends.
func (s *Slots) Put(ctx context.Context, b []byte) (slot int, err error) {
	if len(b) == 0 || len(b) > s.size-slotHeader {
		return 0, fmt.Errorf("%s: %d bytes do not fit a slot: %w", s.f.Name(), len(b), unix.EINVAL)
	}
	select {
	case slot = <-s.free:
	default:
		select {
		case slot = <-s.free:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	if err := s.write(slot, b); err != nil {
		s.Clear(slot)
		return 0, fmt.Errorf("%s: %w", s.f.Name(), err)
	}
	return slot, nil
}

// write puts b into a slot: the bytes first, so that the header is of all of them.
func (s *Slots) write(slot int, b []byte) error {
	if err := fault.Err("tree.slots"); err != nil {
		return err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	at := s.at(slot)
	if s.m == nil {
		buf := slotHead(make([]byte, 0, slotHeader+len(b)), b)
		_, err := s.f.WriteAt(append(buf, b...), at)
		return err
	}
	var head [slotHeader]byte
	if err := s.store(at+slotHeader, b); err != nil {
		return err
	}
	return s.store(at, slotHead(head[:0], b))
}

func slotHead(to, b []byte) []byte {
	to = binary.LittleEndian.AppendUint32(to, uint32(len(b)))
	return binary.LittleEndian.AppendUint32(to, crc32.Checksum(b, castagnoli))
}

// store copies b into the mapping.
func (s *Slots) store(at int64, b []byte) error { return copyMapped(s.m[at:], b) }

// copyMapped copies into mapped memory. A disk that fails, or a file system that
// was shut down, is a fault there, and EIO here; nothing else can go wrong in it.
func copyMapped(to, b []byte) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil {
			err = unix.EIO
		}
	}()
	copy(to, b)
	return nil
}

// Clear empties a slot. Writing eight bytes of an allocated page that is in
// the cache does not fail; if it did, the next start would look at it again.
func (s *Slots) Clear(slot int) {
	s.clear(s.at(slot))
	if s.left.Load() > 0 {
		s.mu.Lock()
		delete(s.old, slot)
		s.left.Store(int32(len(s.old)))
		s.mu.Unlock()
	}
	s.free <- slot
}

func (s *Slots) clear(at int64) {
	var zero [slotHeader]byte
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.m == nil {
		_, _ = s.f.WriteAt(zero[:], at)
		return
	}
	_ = s.store(at, zero[:])
}

// All is what the last run left, by slot, as far as it is not cleared.
func (s *Slots) All() map[int][]byte {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make(map[int][]byte, len(s.old))
	for i, b := range s.old {
		out[i] = b
	}
	return out
}

// Close closes the file. A Put that comes later fails.
func (s *Slots) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	if s.m != nil {
		err = unix.Munmap(s.m)
		s.m = nil
	}
	return errors.Join(err, s.f.Close())
}

func ignoreEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}
