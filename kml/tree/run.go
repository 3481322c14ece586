package tree

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// Boot is one run of the machine, from its start to its end or crash.
type Boot struct {
	ID    string    // differs from run to run
	Since time.Time // when it began
}

// thisBoot asks the kernel (random(4), clock_gettime(2)).
func thisBoot() (Boot, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Boot{}, err
	}
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return Boot{}, fmt.Errorf("clock_gettime: %w", err)
	}
	return Boot{ID: string(bytes.TrimSpace(id)), Since: time.Now().Add(-time.Duration(up.Nano()))}, nil
}

// bootOr is b, or the machine's present run when b says nothing.
func bootOr(b Boot) (Boot, error) {
	if b == (Boot{}) {
		return thisBoot()
	}
	return b, nil
}

// run is what the file "running" says while a process has a fileset open; a
// clean end removes it.
type run struct {
	Version int    `json:"version"`
	BootID  string `json:"boot_id"`
	Began   int64  `json:"began"` // ns
}

const (
	runVersion = 1
	runFile    = "running"
)

// lastRun is the run that did not end cleanly, or nil.
func (s *State) lastRun() (*run, error) {
	b, err := os.ReadFile(s.Path(runFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := new(run)
	if err := json.Unmarshal(b, r); err != nil || r.Version != runVersion {
		// It is replaced whole, so these bytes are not ours or of a newer format:
		// nothing is known of that run, least of all a clean end.
		return new(run), nil
	}
	return r, nil
}

// beginRun says, durably, that a process has the fileset open.
func (s *State) beginRun(boot Boot, now time.Time) error {
	b, err := json.Marshal(run{Version: runVersion, BootID: boot.ID, Began: now.UnixNano()})
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(s.Path(runFile), append(b, '\n'), 0o600); err != nil {
		return err
	}
	return syncDir(s.Path())
}

// endRun says, durably, that it was closed with all of it on disk.
func (s *State) endRun() error {
	if err := os.Remove(s.Path(runFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(s.Path())
}
