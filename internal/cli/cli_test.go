package cli

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"
)

// run is one run of the program without signals.
func run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = Main(Env{
		Args: append([]string{"mezzo"}, args...), Stdin: strings.NewReader(""),
		Stdout: &out, Stderr: &errs, Getenv: func(string) string { return "" },
	})
	return code, out.String(), errs.String()
}

func TestCommandLine(t *testing.T) {
	for _, tt := range []struct {
		args   []string
		code   int
		stdout string // part of it
		stderr string
	}{
		{nil, exitOK, "Available Commands", ""},
		{[]string{"--version"}, exitOK, "mezzo ", ""},
		{[]string{"nosuch"}, exitUsage, "", "mezzo: \"nosuch\" is not a command\nusage: mezzo COMMAND"},
		{[]string{"man", "a", "b"}, exitUsage, "", "mezzo man: takes at most 1 argument, not 2\nusage: mezzo man [PAGE]"},
		{[]string{"man", "--nosuch"}, exitUsage, "", "mezzo man: unknown flag: --nosuch"},
		{[]string{"man", "nosuch"}, exitFailed, "", "mezzo man: nosuch: no such page: there are "},
		{[]string{"man", "--source", "mezzo"}, exitOK, ".Dt MEZZO 1", ""},
		{[]string{"man", "mezzo.1"}, exitOK, "serve, mount and follow filesets", ""},
	} {
		code, stdout, stderr := run(t, tt.args...)
		if code != tt.code {
			t.Errorf("mezzo %q ended with %d, want %d", tt.args, code, tt.code)
		}
		if !strings.Contains(stdout, tt.stdout) || tt.stdout == "" && stdout != "" {
			t.Errorf("mezzo %q printed %q, want %q in it", tt.args, stdout, tt.stdout)
		}
		if !strings.HasPrefix(stderr, tt.stderr) || tt.stderr == "" && stderr != "" {
			t.Errorf("mezzo %q complained %q, want %q", tt.args, stderr, tt.stderr)
		}
	}
}

func TestBadFaultIsRefused(t *testing.T) {
	var errs bytes.Buffer
	code := Main(Env{
		Args: []string{"mezzo"}, Stdout: new(bytes.Buffer), Stderr: &errs,
		Getenv: func(k string) string { return map[string]string{"MEZZO_FAULT": ":0"}[k] },
	})
	if code != exitUsage || !strings.Contains(errs.String(), "MEZZO_FAULT") {
		t.Errorf("ended with %d, %q", code, errs.String())
	}
}

func TestPathProblem(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{&fs.PathError{Op: "open", Path: "/x", Err: syscall.ENOENT}, "/x: does not exist: create it first, or check the path"},
		{syscall.ENOTDIR, "/x: is not a folder: name a folder"},
		{&fs.PathError{Op: "open", Path: "/x", Err: syscall.EACCES}, "/x: permission denied: run it as a user who may, or as root"},
		{syscall.EIO, "/x: input/output error"},
	} {
		if got := pathProblem("/x", tt.err).Error(); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.err, got, tt.want)
		}
	}
}

// TestSecondSignalForces wants the first signal to end the context and the
// second to run what was registered and to exit with its code.
func TestMountProblem(t *testing.T) {
	err := mountProblem("mnt", errors.New("mnt: fusermount3 refused: /usr/bin/fusermount3: failed to open /dev/fuse: Permission denied (exit status 1)"))
	if want := "mnt: this user may not use /dev/fuse: let it"; !strings.HasPrefix(err.Error(), want) {
		t.Errorf("%v, want %s...", err, want)
	}
}

func TestSecondSignalForces(t *testing.T) {
	sig, exited := make(chan os.Signal), make(chan int, 1)
	a := &app{env: Env{Signals: sig, Exit: func(code int) { exited <- code }}, last: map[int]func(){}}
	ctx, stop := a.watchSignals()
	defer stop()
	ran := false
	a.onForce(func() { ran = true })
	a.onForce(func() { t.Error("run though taken back") })()

	sig <- syscall.SIGTERM
	<-ctx.Done()
	if ran {
		t.Error("the first signal forced")
	}
	sig <- syscall.SIGTERM
	if code := <-exited; code != exitSignal+int(syscall.SIGTERM) || !ran {
		t.Errorf("exit code %d, ran %v", code, ran)
	}
}

func TestExitCodes(t *testing.T) {
	for _, tt := range []struct {
		err  error
		code int
	}{
		{nil, exitOK},
		{errors.New("x"), exitFailed},
		{usagef("x"), exitUsage},
		{&problem{Err: errors.New("x")}, exitFailed},
		{&problem{Err: errors.New("x"), Code: exitInUse}, exitInUse},
	} {
		if got := exitCode(tt.err); got != tt.code {
			t.Errorf("%v: %d, want %d", tt.err, got, tt.code)
		}
	}
}
