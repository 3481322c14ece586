package testutil

import (
	"flag"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// recorder is a testing.TB that notes failures instead of having them.
type recorder struct {
	testing.TB
	cleanups []func()
	errors   []string
}

func (r *recorder) Helper()             {}
func (r *recorder) Cleanup(f func())    { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Failed() bool        { return len(r.errors) > 0 }
func (r *recorder) Logf(string, ...any) {}
func (r *recorder) Errorf(format string, args ...any) {
	r.errors = append(r.errors, format)
}
func (r *recorder) end() {
	for i := len(r.cleanups) - 1; i >= 0; i-- {
		r.cleanups[i]()
	}
}

func TestLeakIsSeen(t *testing.T) {
	stop, started := make(chan struct{}), make(chan struct{})
	r := &recorder{TB: t}
	CheckLeaks(r)
	go func() { close(started); <-stop }()
	<-started
	before := map[string]string{}
	if got := leaked(before); len(got) == 0 {
		t.Error("a running goroutine was not seen")
	}
	close(stop)
	r.end()
	if len(r.errors) > 0 {
		t.Errorf("a goroutine that ended counts as left behind: %q", r.errors)
	}
}

func TestNoLeak(t *testing.T) {
	CheckLeaks(t)
	done := make(chan struct{})
	go close(done)
	<-done
	runtime.Gosched()
}

func TestGolden(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.Mkdir("testdata", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join("testdata", "x"), []byte("one\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := &recorder{TB: t}
	Golden(r, "x", []byte("one\n"))
	if r.Failed() {
		t.Errorf("equal contents differ: %q", r.errors)
	}
	Golden(r, "x", []byte("two\n"))
	if len(r.errors) != 1 || !strings.Contains(r.errors[0], "differs") {
		t.Errorf("errors %q, want one about a difference", r.errors)
	}
}

func TestRandFollowsSeed(t *testing.T) {
	old := *seed
	defer func() { *seed = old }()
	one := func(t testing.TB, given string) uint64 {
		*seed = given
		return Rand(t).Uint64()
	}
	for _, given := range []string{"", "7", "0x7"} {
		if a, b := one(t, given), one(t, given); a != b {
			t.Errorf("-seed %q gave %d and %d", given, a, b)
		}
	}
	if a, b := one(t, "7"), one(t, "8"); a == b {
		t.Error("seeds 7 and 8 gave the same")
	}
	if a, b := one(t, "random"), one(t, "random"); a == b {
		t.Error("-seed random gave the same twice")
	}
	first := one(t, "")
	t.Run("another", func(t *testing.T) {
		if one(t, "") == first {
			t.Error("tests of two names have the same seed")
		}
	})
	for _, given := range []string{"x", "-1", "1.5", "18446744073709551616"} {
		if _, err := parseSeed(given, ""); err == nil {
			t.Errorf("-seed %s passes", given)
		}
	}
}

// TestCheckFollowsSeed: rapid draws the same in every run.
func TestCheckFollowsSeed(t *testing.T) {
	old := *seed
	defer func() { *seed = old }()
	draws := func(given string) (d []uint64) {
		*seed = given
		t.Run("check", func(t *testing.T) {
			Check(t, func(rt *rapid.T) { d = append(d, rapid.Uint64().Draw(rt, "n")) })
		})
		return d
	}
	a, b, c := draws("7"), draws("7"), draws("8")
	if len(a) == 0 || !slices.Equal(a[:10], b[:10]) {
		t.Error("two runs drew different numbers")
	}
	if slices.Equal(a[:10], c[:10]) {
		t.Error("another seed drew the same numbers")
	}
	if s := flag.Lookup("rapid.seed").Value.String(); s != "0" {
		t.Errorf("rapid.seed is left at %s", s)
	}
}
