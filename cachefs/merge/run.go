package merge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// ErrFailed is a program that did not join the versions.
var ErrFailed = errors.New("merge program failed")

// Job is a merge by a program.
type Job struct {
	Program            Program
	Base, Ours, Theirs io.Reader
	// UID and GID are the owner of the change: the program runs as that user, with
	// no other groups, where this process is root.
	UID, GID uint32
	Dir      string        // where the temporary folder is made; "" is os.TempDir()
	Timeout  time.Duration // 0 is 30 s
	// MaxOutput bounds the result, in bytes; 0 is 64 MiB.
	MaxOutput int64
	Path      string // $PATH of the program; "" is that of this process
}

const (
	defaultTimeout = 30 * time.Second
	defaultOutput  = 64 << 20
	maxComplaint   = 512
)

// Run runs the program on copies of the three versions, in a folder of its own that
// is removed afterwards, and gives what it makes of them to result, which is valid
// during the call. ErrFailed says that it did not succeed, in time and in size, and
// with what complaint. Every process it has started is killed at the end, but for
// those that left its process group.
func (j Job) Run(ctx context.Context, result func(r io.Reader, size int64) error) (err error) {
	if len(j.Program) == 0 {
		return fmt.Errorf("no program: %w", ErrFailed)
	}
	timeout, limit := j.Timeout, j.MaxOutput
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	if limit <= 0 {
		limit = defaultOutput
	}
	dir, err := os.MkdirTemp(j.Dir, "mezzo-merge-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := j.copies(dir); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	printed, err := os.OpenFile(filepath.Join(dir, "printed"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer printed.Close()
	out := &limited{w: printed, left: limit, over: cancel}
	var complaint head
	cmd := j.command(ctx, dir)
	cmd.Stdout, cmd.Stderr = out, &complaint
	runErr := cmd.Run()
	// What it left running in its group goes with it.
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	switch {
	case out.left < 0:
		return fmt.Errorf("%s: printed over %d bytes: %w", j.Program[0], limit, ErrFailed)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%s: took longer than %v: %w", j.Program[0], timeout, ErrFailed)
	case runErr != nil:
		return fmt.Errorf("%s: %w: %w: %s", j.Program[0], ErrFailed, runErr, strings.TrimSpace(complaint.String()))
	}
	if j.takes("%out") {
		return j.made(filepath.Join(dir, "out"), limit, result)
	}
	size, err := printed.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	return result(io.NewSectionReader(printed, 0, size), size)
}

// made hands on the file that the program made. It must be a regular one: the
// program may have put anything there.
func (j Job) made(path string, limit int64, result func(io.Reader, int64) error) error {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("%s: made no result: %w: %w", j.Program[0], ErrFailed, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Size() > limit {
		return fmt.Errorf("%s: its result is no regular file of at most %d bytes: %w", j.Program[0], limit, ErrFailed)
	}
	return result(io.NewSectionReader(f, 0, st.Size()), st.Size())
}

func (j Job) takes(what string) bool {
	for _, w := range j.Program[1:] {
		if strings.Contains(w, what) {
			return true
		}
	}
	return false
}

// copies puts the three versions into dir, all of it the user's.
func (j Job) copies(dir string) error {
	for name, r := range map[string]io.Reader{"base": j.Base, "ours": j.Ours, "theirs": j.Theirs} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		if r != nil {
			_, err = io.Copy(f, r)
		}
		if err == nil && os.Geteuid() == 0 {
			err = f.Chown(int(j.UID), int(j.GID))
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if os.Geteuid() != 0 {
		return nil
	}
	return os.Chown(dir, int(j.UID), int(j.GID))
}

func (j Job) command(ctx context.Context, dir string) *exec.Cmd {
	put := strings.NewReplacer("%base", filepath.Join(dir, "base"), "%ours", filepath.Join(dir, "ours"),
		"%theirs", filepath.Join(dir, "theirs"), "%out", filepath.Join(dir, "out"))
	args := make([]string, len(j.Program)-1)
	for i, w := range j.Program[1:] {
		args[i] = put.Replace(w)
	}
	cmd := exec.CommandContext(ctx, j.Program[0], args...)
	path := j.Path
	if path == "" {
		path = os.Getenv("PATH")
	}
	cmd.Dir, cmd.Env = dir, []string{"PATH=" + path, "HOME=" + dir, "TMPDIR=" + dir, "LC_ALL=C.UTF-8"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: j.UID, Gid: j.GID}
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // for output that a child of its holds open
	return cmd
}

// limited passes on so many bytes, and then ends the program.
type limited struct {
	w    io.Writer
	left int64
	over func()
}

// Write is io.Writer's.
func (l *limited) Write(p []byte) (int, error) {
	if l.left -= int64(len(p)); l.left < 0 {
		l.over()
		return 0, io.ErrShortWrite
	}
	return l.w.Write(p)
}

// head keeps the beginning of what is written to it.
type head struct{ bytes.Buffer }

// Write is io.Writer's.
func (t *head) Write(p []byte) (int, error) {
	if room := maxComplaint - t.Len(); room > 0 {
		t.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
