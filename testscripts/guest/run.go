package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ErrNoResult means that the guest ended, or was ended, before its script had:
// it did not boot, crashed, or ran into its time limit.
var ErrNoResult = errors.New("guest: script did not finish")

// Run boots a guest, runs the script and returns what it did. A script that
// fails is no error: its exit code is in the result. An error wraps
// ErrNoResult, and the context's cause if that ended it; the result then holds
// what there is, the console above all. Runs may be concurrent.
func Run(ctx context.Context, c Config) (Result, error) {
	if lack := c.missing(); lack != "" {
		return Result{}, fmt.Errorf("guest: missing %s", lack)
	}
	if c.Ports != nil && !c.Emulate {
		return Result{}, fmt.Errorf("guest: %w", errNoPorts)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout(), fmt.Errorf("time limit of %v: %w", c.timeout(), context.DeadlineExceeded))
	defer cancel()
	dir, err := os.MkdirTemp("", "guest-")
	if err != nil {
		return Result{}, err
	}
	defer os.RemoveAll(dir)
	root := filepath.Join(dir, "root")
	if err := buildRoot(root, c); err != nil {
		return Result{}, fmt.Errorf("guest: %w", err)
	}
	console := &tail{max: maxConsole, also: c.Console}
	started := time.Now()
	done := make(chan error)
	// The goroutine ends with its thread locked, which ends the thread.
	go func() {
		runtime.LockOSThread()
		if c.Emulate {
			done <- bootQEMU(ctx, dir, c, console)
			return
		}
		done <- boot(ctx, dir, c, console)
	}()
	bootErr := <-done
	r := Result{Console: console.String(), Took: time.Since(started)}
	r.Stdout = readStart(filepath.Join(root, stdoutFile))
	r.Stderr = readStart(filepath.Join(root, stderrFile))
	if code, err := os.ReadFile(filepath.Join(root, codeFile)); err == nil {
		if r.Code, err = strconv.Atoi(strings.TrimSpace(string(code))); err == nil {
			return r, nil
		}
	}
	r.Code = -1
	if ctx.Err() != nil {
		bootErr = context.Cause(ctx)
	}
	if bootErr == nil {
		bootErr = errors.New("powered off early")
	}
	return r, fmt.Errorf("%w: %w", ErrNoResult, bootErr)
}

// boot runs the kernel to its end on the calling thread, which must be locked
// and never given back: it may enter a network namespace and get a filter.
func boot(ctx context.Context, dir string, c Config, console io.Writer) error {
	args := []string{
		fmt.Sprintf("mem=%dM", c.memory()), "root=/dev/root", "rootfstype=hostfs",
		"rootflags=" + filepath.Join(dir, "root"), "rw", "init=/bin/init",
		"con0=fd:0,fd:1", "con=null", "quiet",
		"uml_dir=" + filepath.Join(dir, "uml") + "/", "umid=guest",
	}
	if c.Forward != nil {
		if err := enterNetwork(); err != nil {
			return err
		}
		f, err := newForwarder(ctx, hostAddr, c.Forward)
		if err != nil {
			return err
		}
		defer f.close()
		args = append(args, "vec0:transport=tap,ifname="+tapName+",depth=128,gro=1")
	}
	if narrowRegisters() {
		if err := hideXstate(); err != nil {
			return err
		}
		args = append(args, narrowEnv[:]...)
	}
	return runKernel(ctx, exec.CommandContext(ctx, kernelPath, args...), dir, console)
}

// runKernel runs the program that is the machine, and ends it with all of its
// processes when ctx ends.
func runKernel(ctx context.Context, cmd *exec.Cmd, dir string, console io.Writer) error {
	cmd.Stdout, cmd.Stderr = console, console
	cmd.Env = []string{"HOME=" + dir, "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 {
		// The helpers end with the first process of their namespace.
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID
	}
	kill := func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Cancel = kill
	cmd.WaitDelay = 2 * time.Second // for helpers that hold the console
	if err := cmd.Start(); err != nil {
		return err
	}
	err := cmd.Wait()
	if killErr := kill(); killErr != nil && !errors.Is(killErr, syscall.ESRCH) {
		err = errors.Join(err, killErr)
	}
	return err
}

// readStart reads a file's first maxOutput bytes; none if it is not there.
func readStart(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	var b bytes.Buffer
	if _, err := io.Copy(&b, io.LimitReader(f, maxOutput)); err != nil {
		return ""
	}
	return b.String()
}

// tail is a writer that keeps the last max to 2*max bytes.
type tail struct {
	max  int
	buf  []byte
	also io.Writer
}

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if len(t.buf) > 2*t.max {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-t.max:]...)
	}
	if t.also != nil {
		return t.also.Write(p)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.buf) }
