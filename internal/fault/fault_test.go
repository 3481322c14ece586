package fault

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

func TestHook(t *testing.T) {
	var got []string
	remove := Hook(func(name string) { got = append(got, name) })
	Point("a.b.c")
	Point("a.b.d")
	remove()
	Point("a.b.e")
	if s := strings.Join(got, " "); s != "a.b.c a.b.d" {
		t.Errorf("hook saw %q", s)
	}
	if armed.Load() {
		t.Error("still armed after the last hook is gone")
	}
}

func TestArmRefuses(t *testing.T) {
	for _, spec := range []string{":3", "x:0", "x:y", "x,", "x:-1"} {
		if err := Arm(spec); err == nil {
			t.Errorf("Arm(%q) was taken", spec)
		}
	}
	if armed.Load() {
		t.Error("armed by a bad spec")
	}
}

// TestKill runs this test binary again with a fault armed and sees it die at
// the second pass of its point.
func TestKill(t *testing.T) {
	if spec := os.Getenv(Env); spec != "" {
		if err := Arm(spec); err != nil {
			t.Fatal(err)
		}
		Point("x.y.z")
		os.Stdout.WriteString("once\n")
		Point("x.y.z")
		os.Stdout.WriteString("twice\n")
		return
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestKill$")
	cmd.Env = append(os.Environ(), Env+"=x.y.z:2")
	out, err := cmd.Output()
	ee, ok := err.(*exec.ExitError)
	if !ok || ee.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("ended with %v, not SIGKILL", err)
	}
	if got := string(out); got != "once\n" {
		t.Errorf("output %q, want the first pass only", got)
	}
}

func BenchmarkPointOff(b *testing.B) {
	for b.Loop() {
		Point("tree.create.after-intent")
	}
}

func TestFail(t *testing.T) {
	if err := Err("a.b"); err != nil {
		t.Errorf("nothing fails yet: %v", err)
	}
	remove := Fail("a.b", func() error { return syscall.EIO })
	if err := Err("a.b"); err != syscall.EIO {
		t.Errorf("a.b fails with %v", err)
	}
	if err := Err("a.c"); err != nil {
		t.Errorf("a.c fails with %v", err)
	}
	remove()
	if err := Err("a.b"); err != nil || failing.Load() {
		t.Errorf("after its end it fails with %v", err)
	}
}
