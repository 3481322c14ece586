package cachefs

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/mezzofs/mezzo/kml"
)

// made is what was done here as it was done: the local log keeps only what has
// to be sent. The file has a line for each change that was joined with another,
// or that another cancelled: its ID in hexadecimal and the record as text. It is
// emptied when the local log is empty, and is of use to people only.
type made struct {
	mu   sync.Mutex
	path string
	size int64
}

// maxMade is when the file is put aside, for the one put aside before.
const maxMade = 8 << 20

func (m *made) open(path string) {
	m.path = path
	if st, err := os.Stat(path); err == nil {
		m.size = st.Size()
	}
}

// keep adds the lines of changes.
func (m *made) keep(b []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.size+int64(len(b)) > maxMade {
		if err := os.Rename(m.path, m.path+".old"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		m.size = 0
	}
	f, err := os.OpenFile(m.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	m.size += int64(len(b))
	return errors.Join(err, f.Close())
}

// forget empties it.
func (m *made) forget() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.size == 0 {
		return nil
	}
	m.size = 0
	var errs []error
	for _, p := range []string{m.path, m.path + ".old"} {
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// lines are what it has, by ID; of an ID that comes again the first counts.
func (m *made) lines() (map[uint64]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[uint64]string)
	for _, p := range []string{m.path + ".old", m.path} {
		b, err := os.ReadFile(p)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		for line := range bytes.Lines(b) {
			id, text, ok := strings.Cut(string(line), " ")
			n, err := strconv.ParseUint(id, 16, 64)
			if _, has := out[n]; !ok || err != nil || has || !strings.HasSuffix(text, "\n") {
				continue // not written whole by a process that was killed
			}
			out[n] = text
		}
	}
	return out, nil
}

// madeLine is a change for keep.
func madeLine(b []byte, id uint64, r *kml.Record) []byte {
	return append(bytes.TrimSuffix(kml.AppendText(fmt.Appendf(b, "%016x ", id), r), []byte("\n")), '\n')
}

// madeText is everything that was done here and that the master has not taken, in
// order, a line each.
func (c *Client) madeText() []byte {
	lines, err := c.made.lines()
	if err != nil {
		c.log.Warn("what was joined with other changes is not shown", "err", err)
		lines = make(map[uint64]string)
	}
	first := uint64(math.MaxUint64) // what came before was taken, or cancelled by what was
	for _, e := range c.cache.Local().Entries() {
		if e.Back() != 0 {
			continue
		}
		first = min(first, e.ID)
		if _, has := lines[e.ID]; !has {
			lines[e.ID] = string(madeLine(nil, e.ID, e.Rec())[17:])
		}
	}
	ids := make([]uint64, 0, len(lines))
	for id := range lines {
		if id >= first {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	var b []byte
	for _, id := range ids {
		b = append(b, lines[id]...)
	}
	return b
}
