package testutil

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
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
	*seed = 7
	if a, b := Rand(t).Uint64(), Rand(t).Uint64(); a != b {
		t.Errorf("the same seed gave %d and %d", a, b)
	}
}
