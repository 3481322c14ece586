package fault

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// Env is the environment variable that arms a process.
const Env = "MEZZO_FAULT"

// The armed state is the process's, as a crash is.
var (
	armed atomic.Bool

	mu     sync.Mutex
	counts map[string]int // passes left until the process is killed
	hooks  = map[int]func(string){}
	nextID int

	failing atomic.Bool
	errs    = map[string]func() error{}
)

// Point marks a step of the program. It returns at once unless the process is
// armed. It may be called from any goroutine.
func Point(name string) {
	if armed.Load() {
		hit(name)
	}
}

// Arm parses what Env holds and arms the process; an empty spec does nothing.
func Arm(spec string) error {
	if spec == "" {
		return nil
	}
	m := map[string]int{}
	for _, s := range strings.Split(spec, ",") {
		name, count, counted := strings.Cut(s, ":")
		n := 1
		if counted {
			var err error
			if n, err = strconv.Atoi(count); err != nil || n < 1 {
				return fmt.Errorf("%s=%s: %q is not a count of passes", Env, spec, count)
			}
		}
		if name == "" {
			return fmt.Errorf("%s=%s: a fault point needs a name", Env, spec)
		}
		m[name] = n
	}
	mu.Lock()
	defer mu.Unlock()
	counts = m
	armed.Store(true)
	return nil
}

// Hook calls f at every point passed, from the goroutine that passes it, until
// remove is called. f may block, panic or call runtime.Goexit; it may be
// called from several goroutines at the same time.
func Hook(f func(name string)) (remove func()) {
	mu.Lock()
	defer mu.Unlock()
	id := nextID
	nextID++
	hooks[id] = f
	armed.Store(true)
	return func() {
		mu.Lock()
		defer mu.Unlock()
		delete(hooks, id)
		armed.Store(len(hooks) > 0 || counts != nil)
	}
}

// hit runs hooks outside mu, so that a hook may block for as long as it likes.
func hit(name string) {
	mu.Lock()
	kill := false
	if n, ok := counts[name]; ok {
		counts[name] = n - 1
		kill = n == 1
	}
	fs := make([]func(string), 0, len(hooks))
	for _, f := range hooks {
		fs = append(fs, f)
	}
	mu.Unlock()
	if kill {
		fmt.Fprintf(os.Stderr, "fault: killed at %s\n", name)
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal arrives before anything else is done
	}
	for _, f := range fs {
		f(name)
	}
}

// Err is a step that may fail: the error that a test has it fail with, or nil. It
// returns nil at once unless Fail was called.
func Err(name string) error {
	if !failing.Load() {
		return nil
	}
	mu.Lock()
	f := errs[name]
	mu.Unlock()
	if f == nil {
		return nil
	}
	return f()
}

// Fail makes the steps of a name fail with what f returns, until remove is
// called. f may be called from several goroutines at once. A name has one f.
func Fail(name string, f func() error) (remove func()) {
	mu.Lock()
	defer mu.Unlock()
	errs[name] = f
	failing.Store(true)
	return func() {
		mu.Lock()
		defer mu.Unlock()
		delete(errs, name)
		failing.Store(len(errs) > 0)
	}
}
