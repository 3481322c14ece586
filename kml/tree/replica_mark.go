package tree

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// marker is a file that says up to which position a replica is on the disk. Two
// places are written in turn, so that one is whole whatever a crash does.
//
//	0   "MZSY", u32 version
//	8   u64 turn
//	16  u64 position
//	24  u32 CRC-32C of the 24 bytes before
type marker struct {
	f    *os.File
	turn uint64
	pos  kml.Position
}

const (
	markerMagic   = "MZSY"
	markerVersion = 1
	markerLen     = 28
	markerPlace   = 4096 // bytes from one place to the next
)

func openMarker(path string) (*marker, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	m := &marker{f: f}
	for i := range int64(2) {
		var b [markerLen]byte
		n, err := f.ReadAt(b[:], i*markerPlace)
		if err != nil && err != io.EOF {
			f.Close()
			return nil, err
		}
		le := binary.LittleEndian
		if n < markerLen || string(b[:4]) != markerMagic || crc32.Checksum(b[:24], castagnoli) != le.Uint32(b[24:]) {
			continue
		}
		if v := le.Uint32(b[4:]); v != markerVersion {
			f.Close()
			return nil, fmt.Errorf("%s: version %d: %w", path, v, kml.ErrNewer)
		}
		if turn := le.Uint64(b[8:]); turn >= m.turn {
			m.turn, m.pos = turn, kml.Position(le.Uint64(b[16:]))
		}
	}
	return m, nil
}

// set says, durably, that the replica is on the disk up to p.
func (m *marker) set(p kml.Position) error {
	le := binary.LittleEndian
	b := append(make([]byte, 0, markerLen), markerMagic...)
	b = le.AppendUint32(b, markerVersion)
	b = le.AppendUint64(b, m.turn+1)
	b = le.AppendUint64(b, uint64(p))
	b = le.AppendUint32(b, crc32.Checksum(b, castagnoli))
	if _, err := m.f.WriteAt(b, int64((m.turn+1)%2)*markerPlace); err != nil {
		return err
	}
	if err := unix.Fdatasync(int(m.f.Fd())); err != nil {
		return fmt.Errorf("%s: %w", m.f.Name(), err)
	}
	m.turn, m.pos = m.turn+1, p
	return nil
}

func (m *marker) close() error { return m.f.Close() }

// commitLoop makes what was applied durable every now and then.
func (r *Replica) commitLoop() {
	tick := time.NewTicker(r.t.opt.SyncEvery)
	defer tick.Stop()
	for {
		select {
		case <-r.t.ctx.Done():
			return
		case <-tick.C:
			if err := r.commit(); err != nil && r.t.ctx.Err() == nil {
				r.t.logger.Warn("what was applied is not durable yet; it is tried again", "fileset", r.t.dir, "err", err)
			}
		}
	}
}
