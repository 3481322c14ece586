package testscripts

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hugelgupf/p9/fsimpl/localfs"
	"github.com/hugelgupf/p9/p9"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/cli"
	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/testscripts/guest"
)

// mark is the environment variable by which a script's processes are found.
const mark = "MEZZO_SCRIPT"

// patience is how long an await waits unless told otherwise.
const patience = time.Minute

func TestMain(m *testing.M) {
	program := func() {
		env := cli.System()
		env.Exit = os.Exit
		os.Exit(cli.Main(env))
	}
	testscript.Main(m, map[string]func(){"mezzo": program, "mount.mezzo": program, "peer": peer})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                ".",
		Setup:              setup,
		Condition:          condition,
		RequireUniqueNames: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"await":      await,
			"awaitgrep":  awaitGrep,
			"awaitmount": awaitMount,
			"awaitgone":  awaitGone,
			"signal":     sendSignal,
			"sametree":   sameTree,
			"oddtree":    oddTree,
			"gotree":     goTree,
			"readme":     readme,
			"guest":      runGuest,
		},
	})
}

// peer serves a folder at a unix socket with the server of the peer library,
// until it is killed.
func peer() {
	l, err := net.Listen("unix", os.Args[1])
	if err == nil {
		err = p9.NewServer(localfs.Attacher(os.Args[2])).Serve(l)
	}
	fmt.Fprintln(os.Stderr, err)
}

// envKey finds the environment of a script's programs.
type envKey struct{}

func setup(env *testscript.Env) error {
	home := filepath.Join(env.WorkDir, "home")
	if err := os.Mkdir(home, 0o755); err != nil {
		return err
	}
	for _, kv := range [][2]string{
		{mark, env.WorkDir}, {"HOME", home}, {"XDG_CACHE_HOME", filepath.Join(home, "cache")},
		{"XDG_RUNTIME_DIR", filepath.Join(home, "run")}, {"TMPDIR", filepath.Join(env.WorkDir, ".tmp")},
		{"GOCACHE", goCache()}, {"GOFLAGS", "-mod=mod"}, {"GOTOOLCHAIN", "local"},
		{"GIT_CONFIG_GLOBAL", filepath.Join(home, "gitconfig")}, {"GIT_CONFIG_NOSYSTEM", "1"},
	} {
		env.Setenv(kv[0], kv[1])
	}
	if err := os.Mkdir(filepath.Join(home, "run"), 0o700); err != nil {
		return err
	}
	if err := openUp(env.WorkDir); err != nil {
		return err
	}
	gitconfig := "[user]\n\tname = Someone\n\temail = someone@example.org\n[init]\n\tdefaultBranch = main\n[safe]\n\tdirectory = *\n"
	if err := os.WriteFile(filepath.Join(home, "gitconfig"), []byte(gitconfig), 0o644); err != nil {
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	env.Setenv("PORT", port)
	env.Values[envKey{}] = slices.Clone(env.Vars)
	env.Defer(func() { sweep(env.WorkDir) })
	return nil
}

// openUp lets other users than the one who runs the tests come to a folder for
// temporary files, and to the programs.
func openUp(dir string) error {
	bin, _, _ := strings.Cut(os.Getenv("PATH"), string(os.PathListSeparator))
	for _, dir := range []string{dir, bin} {
		for tmp := filepath.Clean(os.TempDir()); strings.HasPrefix(dir, tmp+"/"); dir = filepath.Dir(dir) {
			if err := os.Chmod(dir, 0o755); err != nil {
				return err
			}
		}
	}
	return nil
}

// goCache is the build cache of who runs the tests: a cold one would build the
// standard library again.
func goCache() string {
	out, err := exec.Command("go", "env", "GOCACHE").Output()
	if err != nil {
		return os.TempDir()
	}
	return strings.TrimSpace(string(out))
}

// freePort is a TCP port that was free a moment ago.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

func condition(cond string) (bool, error) {
	switch cond {
	case "fuse":
		f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
		if err != nil {
			return false, nil
		}
		return true, f.Close()
	case "guest":
		return guest.MissingNet() == "", nil
	case "root":
		return os.Getuid() == 0, nil
	case "long":
		return testutil.Long(), nil
	}
	return false, fmt.Errorf("unknown condition %q", cond)
}

// sweep detaches every mount below dir and kills every process that carries
// the script's mark.
func sweep(dir string) {
	for _, m := range mountsBelow(dir) {
		if unix.Unmount(m, unix.MNT_DETACH) != nil {
			exec.Command("fusermount3", "-u", "-z", m).Run() // best effort, as a user
		}
	}
	for _, p := range processes(dir) {
		syscall.Kill(p.pid, syscall.SIGKILL)
	}
}

// mountsBelow lists the mount points below dir, the deepest first.
func mountsBelow(dir string) []string {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var found []string
	for _, line := range strings.Split(string(text), "\n") {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		point := unescapeMount(f[4])
		if strings.HasPrefix(point, dir+"/") {
			found = append(found, point)
		}
	}
	sort.Slice(found, func(i, j int) bool { return len(found[i]) > len(found[j]) })
	return found
}

// unescapeMount undoes the octal escapes of proc(5)'s mountinfo.
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

type process struct {
	pid  int
	args string
}

// processes are those that carry the mark of the script in dir, this one
// excepted.
func processes(dir string) []process {
	var found []process
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	want := []byte("\x00" + mark + "=" + dir + "\x00")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		environ, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err != nil || !bytes.Contains(append([]byte{0}, environ...), want) {
			continue
		}
		args, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue
		}
		found = append(found, process{pid, strings.ReplaceAll(strings.TrimRight(string(args), "\x00"), "\x00", " ")})
	}
	return found
}

// matching are the processes of a script whose command line contains pattern.
func matching(ts *testscript.TestScript, pattern string) []process {
	var found []process
	for _, p := range processes(ts.Getenv(mark)) {
		if strings.Contains(p.args, pattern) {
			found = append(found, p)
		}
	}
	return found
}

// poll calls ok until it is true or d has passed.
func poll(d time.Duration, ok func() bool) bool {
	deadline := time.After(d)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		if ok() {
			return true
		}
		select {
		case <-deadline:
			return ok()
		case <-time.After(pause):
		}
	}
}

// timed takes a leading -t SECONDS off args.
func timed(ts *testscript.TestScript, args []string) (time.Duration, []string) {
	if len(args) < 2 || args[0] != "-t" {
		return patience, args
	}
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	return time.Duration(n) * time.Second, args[2:]
}

func await(ts *testscript.TestScript, neg bool, args []string) {
	d, args := timed(ts, args)
	if len(args) == 0 {
		ts.Fatalf("usage: [!] await [-t SECONDS] COMMAND [ARG...]")
	}
	var out []byte
	var err error
	if !poll(d, func() bool { out, err = attempt(ts, args); return (err == nil) != neg }) {
		ts.Fatalf("await %q: not within %v: %v\n%s", args, d, err, out)
	}
}

// attempt runs a program, or compares two trees, without a word in the log.
func attempt(ts *testscript.TestScript, args []string) ([]byte, error) {
	if args[0] == "sametree" && len(args) == 3 {
		diffs, err := treeDifferences(ts.MkAbs(args[1]), ts.MkAbs(args[2]))
		if err == nil && len(diffs) > 0 {
			err = fmt.Errorf("%d differences\n%s", len(diffs), strings.Join(diffs[:min(20, len(diffs))], "\n"))
		}
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = ts.Value(envKey{}).([]string)
	return cmd.CombinedOutput()
}

func awaitGrep(ts *testscript.TestScript, neg bool, args []string) {
	d, args := timed(ts, args)
	if neg || len(args) != 2 {
		ts.Fatalf("usage: awaitgrep [-t SECONDS] REGEXP FILE")
	}
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	var text []byte
	if !poll(d, func() bool {
		text, err = os.ReadFile(ts.MkAbs(args[1]))
		return err == nil && re.Match(text)
	}) {
		ts.Fatalf("awaitgrep %q: not within %v in %s: %v\n%s", args[0], d, args[1], err, text)
	}
}

// awaitMount waits until the mount is there and answers.
func awaitMount(ts *testscript.TestScript, neg bool, args []string) {
	d, args := timed(ts, args)
	if len(args) != 1 {
		ts.Fatalf("usage: [!] awaitmount [-t SECONDS] MNT")
	}
	point := ts.MkAbs(args[0])
	if !poll(d, func() bool { return mounted(point) != neg }) {
		ts.Fatalf("awaitmount %s: not within %v", args[0], d)
	}
}

// mounted says whether something that answers is mounted at point.
func mounted(point string) bool {
	var here, above unix.Stat_t
	return unix.Stat(point, &here) == nil && unix.Stat(filepath.Dir(point), &above) == nil && here.Dev != above.Dev
}

func awaitGone(ts *testscript.TestScript, neg bool, args []string) {
	d, args := timed(ts, args)
	if neg || len(args) != 1 {
		ts.Fatalf("usage: awaitgone [-t SECONDS] PATTERN")
	}
	if !poll(d, func() bool { return len(matching(ts, args[0])) == 0 }) {
		ts.Fatalf("awaitgone %q: still there after %v: %v", args[0], d, matching(ts, args[0]))
	}
}

func sendSignal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: signal SIG PATTERN")
	}
	sig := unix.SignalNum("SIG" + args[0])
	if sig == 0 {
		ts.Fatalf("%s is no signal", args[0])
	}
	found := matching(ts, args[1])
	if len(found) == 0 {
		ts.Fatalf("no process matches %q", args[1])
	}
	for _, p := range found {
		ts.Check(syscall.Kill(p.pid, sig))
	}
}

// readme writes the session of the README as a shell script, which waits where
// a person would: until what was started in the background can be used.
func readme(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: readme FILE")
	}
	text, err := os.ReadFile(filepath.Join("..", "README.md"))
	ts.Check(err)
	var b strings.Builder
	b.WriteString("set -e -m\n")
	inside := false
	for _, line := range strings.Split(string(text), "\n") {
		if strings.HasPrefix(line, "```") {
			inside = line == "```console"
		}
		cmd, ok := strings.CutPrefix(line, "$ ")
		if !inside || !ok {
			continue
		}
		b.WriteString(cmd + "\n")
		if strings.HasSuffix(cmd, "&") {
			b.WriteString("until [ -e mnt/.mezzo/status ]; do sleep 0.1; done\n")
		}
	}
	b.WriteString("wait\n")
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(b.String()), 0o644))
}

// runGuest runs a script in a guest with a kernel of its own, where port 564
// of $HOST leads to an address of this machine.
func runGuest(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: [!] guest ADDR SCRIPT")
	}
	script, err := os.ReadFile(ts.MkAbs(args[1]))
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	r, err := guest.Run(ctx, guest.Config{
		Script:  string(script),
		Forward: map[int]string{564: args[0]},
		Timeout: 2 * time.Minute,
	})
	ts.Logf("[guest stdout]\n%s[guest stderr]\n%s", r.Stdout, r.Stderr)
	if err != nil {
		ts.Fatalf("%v\n%s", err, r.Console)
	}
	if (r.Code == 0) == neg {
		ts.Fatalf("the guest's script ended with %d", r.Code)
	}
}
