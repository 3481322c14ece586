package bench9p

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// server is a 9P server that runs as a process of its own.
type server struct {
	kind  string
	aname string
	cmd   *exec.Cmd
	stdin io.Closer
	addrs map[string]string // by network
}

// kinds of servers, in the order of the table. The first is what the others are
// compared to.
var kinds = []string{kindDiod, kindPlain, kindJournal, kindLocalfs, kindHugelgupf}

const (
	kindDiod      = "diod"
	kindPlain     = "plain"
	kindJournal   = "journal"
	kindLocalfs   = "localfs"   // hugelgupf's localfs under our engine
	kindHugelgupf = "hugelgupf" // under its own
)

var networks = []string{"unix", "tcp"}

// startServer serves dir at a socket in run and a port of loopback.
func startServer(kind, dir, run, profile string, stderr io.Writer) (*server, error) {
	s := &server{kind: kind, addrs: map[string]string{"unix": filepath.Join(run, kind+".sock")}}
	if kind == kindDiod {
		return s, s.startDiod(dir, stderr)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	args := []string{"-serve", kind, "-dir", dir, "-socket", s.addrs["unix"]}
	if profile != "" {
		args = append(args, "-cpuprofile", fmt.Sprintf("%s.%s", profile, kind))
	}
	s.cmd = exec.Command(self, args...)
	s.cmd.Stderr = stderr
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	// The end of its input is the end of the server, however this process ends.
	if s.stdin, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: no address: %w", kind, err), s.stop())
	}
	s.addrs["tcp"] = strings.TrimSpace(line)
	return s, nil
}

// startDiod starts Debian's diod, which takes no port 0 and does not say when
// it listens.
func (s *server) startDiod(dir string, stderr io.Writer) error {
	path, err := exec.LookPath("diod")
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/diod"); err != nil {
			return fmt.Errorf("%w (package diod)", err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.addrs["tcp"] = l.Addr().String()
	if err := l.Close(); err != nil {
		return err
	}
	s.aname = dir
	s.cmd = exec.Command(path, "-f", "-n", "-N", "-L", "stderr", "-l", s.addrs["unix"], "-l", s.addrs["tcp"], "-e", dir)
	s.cmd.Stderr = &diodLog{w: stderr}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	for _, network := range networks {
		deadline := time.Now().Add(10 * time.Second)
		for {
			c, err := net.Dial(network, s.addrs[network])
			if err == nil {
				c.Close()
				break
			}
			if time.Now().After(deadline) {
				return errors.Join(fmt.Errorf("diod: %w", err), s.stop())
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return nil
}

// diodLog leaves out what diod says when it is told to end.
type diodLog struct{ w io.Writer }

func (l *diodLog) Write(p []byte) (int, error) {
	if strings.Contains(string(p), "caught SIGTERM") {
		return len(p), nil
	}
	return l.w.Write(p)
}

// stop ends the process and waits for it.
func (s *server) stop() error {
	if s.stdin != nil {
		s.stdin.Close()
		return s.cmd.Wait()
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	err := s.cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil // diod's way to end when it is told to
	}
	return err
}

// cpu is the CPU time of the process so far, of threads that have ended too. The
// clock of another process is what clock_getcpuclockid(3) makes of its number.
func (s *server) cpu() (time.Duration, error) {
	const scheduled = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^s.cmd.Process.Pid<<3|scheduled), &ts); err != nil {
		return 0, fmt.Errorf("%s: CPU clock: %w", s.kind, err)
	}
	return time.Duration(ts.Nano()), nil
}
