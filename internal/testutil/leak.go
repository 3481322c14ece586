package testutil

import (
	"runtime"
	"strings"
	"testing"
	"time"
)

// leakWait is how long goroutines that are on their way out have to end.
const leakWait = 30 * time.Second

// CheckLeaks fails the test at its end if goroutines that started during it
// still run then. Call it first, so that the test's other cleanups run before.
// It sees the whole process: do not use it in parallel tests.
func CheckLeaks(t testing.TB) {
	t.Helper()
	before := goroutines()
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		deadline := time.Now().Add(leakWait)
		for {
			left := leaked(before)
			if len(left) == 0 {
				return
			}
			if time.Now().After(deadline) {
				for _, g := range left {
					t.Errorf("goroutine left behind:\n%s", g)
				}
				return
			}
			// The scheduler tells nobody when a goroutine ends: look again.
			runtime.Gosched()
			<-time.After(time.Millisecond)
		}
	})
}

// goroutines is the stack of every goroutine by its header's number.
func goroutines() map[string]string {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	m := map[string]string{}
	for _, g := range strings.Split(string(buf), "\n\n") {
		head, _, _ := strings.Cut(g, " [")
		m[head] = g
	}
	return m
}

func leaked(before map[string]string) []string {
	var left []string
	for id, stack := range goroutines() {
		if _, old := before[id]; old || ours(stack) {
			continue
		}
		left = append(left, stack)
	}
	return left
}

// ours says that a goroutine belongs to the runtime or the testing package.
func ours(stack string) bool {
	for _, s := range []string{"testing.(*T).Run", "testing.tRunner.", "testing.runTests", "runtime.goexit0", "os/signal.loop", "runtime.ensureSigM", "created by runtime", "testing.(*M)", "testutil.goroutines"} {
		if strings.Contains(stack, s) {
			return true
		}
	}
	return false
}
