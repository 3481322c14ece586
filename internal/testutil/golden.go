package testutil

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// The flags are the test binary's, as testing's own are.
var (
	update = flag.Bool("update", false, "rewrite golden files")
	seed   = flag.String("seed", "", "seed of random tests: a number, or random for a new one (default: by the test's name)")
	long   = flag.Bool("long", false, "run random tests for minutes")
)

// Golden compares got with the file testdata/name beside the test, or, with
// -update, writes it there.
func Golden(t testing.TB, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (run go test -update to make it)", err)
	}
	if bytes.Equal(got, want) {
		return
	}
	if utf8.Valid(got) && utf8.Valid(want) {
		t.Errorf("%s differs (-want +got):\n%s", path, cmp.Diff(string(want), string(got)))
		return
	}
	t.Errorf("%s differs: %s", path, firstDifference(want, got))
}
