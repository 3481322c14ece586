package testutil

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// Rand is a source of random numbers for a test. Its seed is new for each run
// unless -seed is given, and is printed when the test fails.
func Rand(t testing.TB) *rand.Rand {
	t.Helper()
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("to repeat: go test -run '^%s$' -seed %d", t.Name(), s)
		}
	})
	return rand.New(rand.NewPCG(s, 0))
}

// Long says whether random tests are to run for minutes.
func Long() bool { return *long }

func firstDifference(want, got []byte) string {
	n := min(len(want), len(got))
	for i := range n {
		if want[i] != got[i] {
			return fmt.Sprintf("first at byte %d: % x, want % x (%d bytes, want %d)", i, clip(got, i), clip(want, i), len(got), len(want))
		}
	}
	return fmt.Sprintf("one is the other's beginning: %d bytes, want %d", len(got), len(want))
}

func clip(b []byte, i int) []byte { return b[i:min(len(b), i+16)] }
