package replay

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// StateDir is the folder in a directory's root that tells how far its replay is.
// No record can name it.
const StateDir = ".mezzo-replay"

// slot is the content of the state file: how far the directory is.
type slot struct {
	fileset [16]byte
	pos     kml.Position // the last record that is done
	crc     uint32       // the chain's there
	settled kml.Position // up to there contents are in place too, or listed as missing
	phase   phase        // what may be going on
	ino     uint64       // the inode that record is about; 0: none
	boot    [16]byte     // of the machine, when this was written
}

// phase is what a replay was about when it wrote the slot.
type phase uint32

const (
	ended   phase = iota // nothing; all is durable
	doing                // the record behind pos may have begun
	placing              // pos is done to the end; contents are put in place
)

const (
	slotMagic = "MEZZORPL"
	slotLen   = 96
)

func (s *slot) encode() []byte {
	le := binary.LittleEndian
	b := append(make([]byte, 0, slotLen), slotMagic...)
	b = append(b, s.fileset[:]...)
	b = le.AppendUint64(b, uint64(s.pos))
	b = le.AppendUint32(b, s.crc)
	b = le.AppendUint32(b, uint32(s.phase))
	b = le.AppendUint64(b, uint64(s.settled))
	b = le.AppendUint64(b, s.ino)
	b = append(b, s.boot[:]...)
	b = append(b, make([]byte, slotLen-4-len(b))...)
	return le.AppendUint32(b, crc32.ChecksumIEEE(b))
}

func decodeSlot(b []byte) (s slot, err error) {
	le := binary.LittleEndian
	if len(b) != slotLen || string(b[:8]) != slotMagic || crc32.ChecksumIEEE(b[:slotLen-4]) != le.Uint32(b[slotLen-4:]) {
		return s, errors.New("is not the state of a replay, or is damaged")
	}
	return slot{fileset: [16]byte(b[8:]), pos: kml.Position(le.Uint64(b[24:])), crc: le.Uint32(b[32:]),
		phase: phase(le.Uint32(b[36:])), settled: kml.Position(le.Uint64(b[40:])), ino: le.Uint64(b[48:]), boot: [16]byte(b[56:])}, nil
}

// state is the open state file.
type state struct {
	slot
	f *os.File
}

// openState opens the state file at path, locked, or makes it.
func openState(path string) (*state, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	st := &state{f: f}
	if err := st.load(); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return st, nil
}

func (st *state) load() error {
	if err := unix.Flock(int(st.f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return ErrBusy
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	b := make([]byte, slotLen)
	n, err := st.f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return err
	}
	if n == 0 {
		st.boot = boot
		return nil
	}
	if st.slot, err = decodeSlot(b[:n]); err != nil {
		return err
	}
	if st.phase != ended && st.boot != boot {
		return ErrCrashed
	}
	st.boot = boot
	return nil
}

// save writes the slot. One small write is whole or not there, as long as the
// machine lives.
func (st *state) save() error {
	_, err := st.f.WriteAt(st.encode(), 0)
	return err
}

// bootID is random, and the same as long as the machine runs.
func bootID() (id [16]byte, err error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return id, err
	}
	d, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(b)), "-", ""))
	if copy(id[:], d) != len(id) {
		err = errors.Join(err, errors.New("boot_id is too short"))
	}
	return id, err
}
