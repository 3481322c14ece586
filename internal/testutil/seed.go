package testutil

import (
	"flag"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strconv"
	"testing"

	"pgregory.net/rapid"
)

// Rand is a source of random numbers for a test: the same in every run, for the
// seed comes from the test's name; -seed N gives another and -seed random a new
// one for each run. The seed is printed when the test fails. Call it in the test
// itself, where make soak looks for it, and once: every call begins anew.
func Rand(t testing.TB) *rand.Rand {
	t.Helper()
	return rand.New(rand.NewPCG(seedFor(t), 0))
}

// Check is rapid.Check with the seed that Rand takes. Flags of rapid that are
// given go before.
func Check(t *testing.T, prop func(*rapid.T)) {
	t.Helper()
	given := map[string]bool{}
	flag.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if given["rapid.seed"] {
		rapid.Check(t, prop)
		return
	}
	// rapid reads its flags when it begins: a test that calls this may not run
	// in parallel with another. Seed 0 would be a random one.
	for name, value := range map[string]string{"rapid.seed": strconv.FormatUint(max(seedFor(t), 1), 10), "rapid.nofailfile": "true"} {
		f := flag.Lookup(name)
		old := f.Value.String()
		if err := f.Value.Set(value); err != nil {
			t.Fatalf("flag %s: %v", name, err)
		}
		t.Cleanup(func() {
			if err := f.Value.Set(old); err != nil {
				t.Errorf("flag %s: %v", name, err)
			}
		})
	}
	rapid.Check(t, prop)
}

// seedFor is the seed of a test, which prints it when it fails.
func seedFor(t testing.TB) uint64 {
	t.Helper()
	s, err := parseSeed(*seed, t.Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("to repeat: go test -run '^%s$' -seed %d", t.Name(), s)
		}
	})
	return s
}

// parseSeed turns what was given by -seed into a seed for the test called name.
func parseSeed(given, name string) (uint64, error) {
	switch given {
	case "":
		h := fnv.New64a()
		h.Write([]byte(name))
		return h.Sum64(), nil
	case "random":
		return rand.Uint64(), nil
	}
	s, err := strconv.ParseUint(given, 0, 64)
	if err != nil {
		return 0, fmt.Errorf("-seed %s: want a number below 1<<64, or random", given)
	}
	return s, nil
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
