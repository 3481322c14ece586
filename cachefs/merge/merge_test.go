package merge

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mezzofs/mezzo/internal/testutil"
)

func TestAppend(t *testing.T) {
	big := strings.Repeat("0123456789", chunk/7)
	v := func(s string) Version { return Version{strings.NewReader(s), int64(len(s))} }
	for _, c := range []struct {
		base, ours, theirs, want string
		err                      error
	}{
		{"a", "ab", "ac", "acb", nil},
		{"", "b", "c", "cb", nil},
		{"a", "a", "ac", "ac", nil},
		{"a", "ab", "a", "ab", nil},
		{big, big + "x", big + "y", big + "yx", nil},
		{"a", "xb", "ac", "", ErrNotAppended},
		{"a", "ab", "xc", "", ErrNotAppended},
		{"ab", "a", "abc", "", ErrNotAppended},
		{big + "a", big + "b", big + "ac", "", ErrNotAppended},
	} {
		var b bytes.Buffer
		if err := Append(&b, v(c.base), v(c.ours), v(c.theirs)); !errors.Is(err, c.err) || b.String() != c.want {
			t.Errorf("%.9q %.9q %.9q: %.20q, %v", c.base, c.ours, c.theirs, b.String(), err)
		}
	}
}

func TestPrograms(t *testing.T) {
	ps, err := ParsePrograms("# mine\n\ngit = git merge-file -p %ours %base %theirs\np=\"/a b/c\" --to=%out %ours %theirs\n")
	if err != nil || len(ps) != 2 || ps["p"][0] != "/a b/c" || ps["p"][1] != "--to=%out" || len(ps["git"]) != 6 {
		t.Errorf("%q, %v", ps, err)
	}
	for _, c := range []struct{ text, want string }{
		{"git", "line 1: say NAME"},
		{"= x %ours %theirs", "say NAME"},
		{"a =", "say NAME"},
		{"\na = x %ours", "line 2: \"a\" takes no"},
		{"a = x %ours %theirs\na = x %ours %theirs", "comes twice"},
		{`a = "x`, "quote"},
	} {
		if _, err := ParsePrograms(c.text); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v", c.text, err)
		}
	}
	env := map[string]string{"HOME": "/home/u"}
	get := func(k string) string { return env[k] }
	if p, err := ConfigPath(get); p != "/home/u/.config/mezzo/merge.conf" || err != nil {
		t.Error(p, err)
	}
	env["XDG_CONFIG_HOME"] = "/x"
	if p, err := ConfigPath(get); p != "/x/mezzo/merge.conf" || err != nil {
		t.Error(p, err)
	}
	if _, err := ConfigPath(func(string) string { return "" }); !errors.Is(err, ErrConfig) {
		t.Error(err)
	}
	path := filepath.Join(t.TempDir(), "merge.conf")
	if ps, err := ReadPrograms(path); ps != nil || err != nil {
		t.Error(ps, err)
	}
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadPrograms(path); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), path) {
		t.Error(err)
	}
}

// job is a job in a folder that every user may pass through.
func job(t *testing.T, p Program, base, ours, theirs string) Job {
	t.Helper()
	dir, err := os.MkdirTemp("", "merge")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		es, err := os.ReadDir(dir)
		if err != nil || len(es) > 0 {
			t.Errorf("left behind: %v, %v", es, err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return Job{Program: p, Base: strings.NewReader(base), Ours: strings.NewReader(ours), Theirs: strings.NewReader(theirs),
		Dir: dir, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
}

func (j Job) text(t *testing.T) (string, error) {
	t.Helper()
	var b strings.Builder
	err := j.Run(t.Context(), func(r io.Reader, size int64) error {
		n, err := io.Copy(&b, r)
		if n != size {
			t.Errorf("%d bytes, told %d", n, size)
		}
		return err
	})
	return b.String(), err
}

func TestGitMergeFile(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("no git")
	}
	ps, err := ParsePrograms("git = git merge-file -p %ours %base %theirs")
	if err != nil {
		t.Fatal(err)
	}
	got, err := job(t, ps["git"], "1\n2\n3\n4\n5\n", "one\n2\n3\n4\n5\n", "1\n2\n3\n4\nfive\n").text(t)
	if err != nil || got != "one\n2\n3\n4\nfive\n" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := job(t, ps["git"], "1\n", "2\n", "3\n").text(t); !errors.Is(err, ErrFailed) || got != "" {
		t.Errorf("two changes of one line: %q, %v", got, err)
	}
}

func TestRun(t *testing.T) {
	testutil.CheckLeaks(t)
	sh := func(script string) Program {
		return Program{"sh", "-c", script, "sh", "%base", "%ours", "%theirs", "%out"}
	}
	if got, err := job(t, sh(`cat "$3" "$2" "$1" >"$4"; echo said`), "b", "o", "t").text(t); err != nil || got != "tob" {
		t.Errorf("%q, %v", got, err)
	}
	plain := Program{"sh", "-c", `cat "$1" "$2"; pwd >&2`, "sh", "%ours", "%theirs"}
	if got, err := job(t, plain, "b", "o", "t").text(t); err != nil || got != "ot" {
		t.Errorf("%q, %v", got, err)
	}
	for _, c := range []struct {
		p    Program
		want string
	}{
		{Program{"/no/such/program", "%ours", "%theirs"}, "no such file"},
		{sh(`echo why >&2; exit 3`), "exit status 3: why"},
		{sh(`true`), "made no result"},
		{sh(`ln -s /etc/passwd "$4"`), "made no result"},
		{sh(`mkdir "$4"`), "no regular file"},
		{sh(`mkfifo "$4"`), "no regular file"},
		{sh(`yes`), "printed over"},
		{sh(`head -c 2000 /dev/zero >"$4"`), "no regular file of at most"},
		{nil, "no program"},
	} {
		j := job(t, c.p, "b", "o", "t")
		j.MaxOutput = 1000
		if got, err := j.text(t); !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), c.want) || got != "" {
			t.Errorf("%q: %q, %v", c.p, got, err)
		}
	}
	// One that does not end, and has started another that does not either.
	j := job(t, sh(`sleep 1000 & sleep 1000`), "", "", "")
	j.Timeout = 200 * time.Millisecond
	begun := time.Now()
	if _, err := j.text(t); !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), "longer than") || time.Since(begun) > 20*time.Second {
		t.Errorf("%v after %v", err, time.Since(begun))
	}
}

// TestRunAs runs the program as the owner of the change, without any right of this
// process.
func TestRunAs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	j := job(t, Program{"sh", "-c", `id -u; id -g; id -G; cat "$1" "$2"; cat /etc/shadow 2>/dev/null; true`, "sh", "%ours", "%theirs"}, "", "o\n", "t\n")
	j.UID, j.GID = 12345, 23456
	if got, err := j.text(t); err != nil || got != "12345\n23456\n23456\no\nt\n" {
		t.Errorf("%q, %v", got, err)
	}
}
