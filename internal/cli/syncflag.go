package cli

import (
	"fmt"
	"time"

	"github.com/mezzofs/mezzo/kml/tree"
)

// syncFlag is --sync: always, never, or how often.
type syncFlag struct {
	mode  tree.SyncMode
	every time.Duration
}

// String is the flag as it is given.
func (f *syncFlag) String() string {
	switch f.mode {
	case tree.SyncAlways:
		return "always"
	case tree.SyncNever:
		return "never"
	}
	if f.every == 0 {
		return time.Second.String()
	}
	return f.every.String()
}

// Set parses the flag.
func (f *syncFlag) Set(s string) error {
	switch s {
	case "always":
		*f = syncFlag{mode: tree.SyncAlways}
		return nil
	case "never":
		*f = syncFlag{mode: tree.SyncNever}
		return nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 10*time.Millisecond || d > time.Hour {
		return fmt.Errorf("%q is neither always nor never nor a time from 10ms to 1h", s)
	}
	*f = syncFlag{mode: tree.SyncInterval, every: d}
	return nil
}

// Type names the value in a usage text.
func (f *syncFlag) Type() string { return "when" }
