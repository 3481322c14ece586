package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// userCases are about who may do what.
var userCases = []testCase{
	{"owner", caseOwner}, {"rights", caseRights}, {"sticky", caseSticky}, {"groups", caseGroups}, {"setgid", caseSetgid},
	{"setuid", caseSetuid},
}

// asAlice does something as user 1000, who is in group 2000 too. outcome is ""
// when it has to work, "refused" when the permissions have to refuse it.
func asAlice(outcome, action string, args ...string) error {
	who, err := alice()
	if err != nil {
		return err
	}
	text, err := who.do(append([]string{action}, args...))
	switch {
	case err != nil:
		return err
	case text == "" && outcome == "":
		return nil
	case text == "":
		return fmt.Errorf("user 1000 may %s %v", action, args)
	case outcome == "refused" && (strings.Contains(text, "permission denied") || strings.Contains(text, "operation not permitted")):
		return nil
	}
	return fmt.Errorf("user 1000, %s %v: %s", action, args, text)
}

// servant is a process that does what it is told.
type servant struct {
	mu  sync.Mutex
	in  *json.Encoder
	out *json.Decoder
}

// alice is user 1000's, started when first asked for; it ends with this one.
var alice = sync.OnceValues(func() (*servant, error) {
	cmd := exec.Command("/proc/self/exe", "do", "serve")
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000, Groups: []uint32{2000}}}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return &servant{in: json.NewEncoder(in), out: json.NewDecoder(out)}, cmd.Start()
})

// do has the servant act and returns the error's text.
func (s *servant) do(args []string) (text string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return text, errors.Join(s.in.Encode(args), s.out.Decode(&text))
}

// serve is the servant's side.
func serve() error {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var args []string
		if err := in.Decode(&args); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		text := ""
		if err := act(args[0], args[1:]); err != nil {
			text = err.Error()
		}
		if err := out.Encode(text); err != nil {
			return err
		}
	}
}

// act is what a second process does.
func act(action string, args []string) error {
	num := func(i int) int {
		n, err := strconv.ParseInt(args[i], 8, 32)
		if err != nil {
			return -1
		}
		return int(n)
	}
	switch action {
	case "serve":
		return serve()
	case "echo":
		fmt.Println(strings.Join(args, " "))
		return nil
	case "say":
		f, err := os.OpenFile(args[0], os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString(args[1])
		return first(err, f.Close())
	case "read":
		_, err := os.ReadFile(args[0])
		return err
	case "write":
		return os.WriteFile(args[0], []byte("written"), 0o666)
	case "list":
		_, err := os.ReadDir(args[0])
		return err
	case "mkdir":
		return os.Mkdir(args[0], 0o755)
	case "symlink":
		return os.Symlink("x", args[0])
	case "mkfifo":
		return unix.Mkfifo(args[0], 0o600)
	case "link":
		return os.Link(args[0], args[1])
	case "rename":
		return unix.Rename(args[0], args[1])
	case "remove":
		return os.Remove(args[0])
	case "chmod":
		return unix.Chmod(args[0], uint32(num(1)))
	case "chown":
		return os.Chown(args[0], num(1), -1)
	case "truncate":
		return os.Truncate(args[0], 0)
	case "touch":
		return unix.Utimes(args[0], []unix.Timeval{{Sec: 5}, {Sec: 6}})
	case "setxattr":
		return unix.Setxattr(args[0], "user.x", []byte("1"), 0)
	}
	return errors.New("unknown action " + action)
}

func owned(path string, uid uint32) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	return want("owner of "+path, st.Uid, uid)
}

func caseOwner(e *env) error {
	if err := os.Chmod(e.dir, 0o777); err != nil {
		return err
	}
	for _, make := range []string{"write", "mkdir", "symlink", "mkfifo"} {
		if err := first(asAlice("", make, e.path(make)), owned(e.path(make), e.owner)); err != nil {
			return err
		}
	}
	if e.owner != 1000 {
		return nil
	}
	if err := first(asAlice("", "chmod", e.path("write"), "600"), asAlice("", "touch", e.path("write")),
		asAlice("", "truncate", e.path("write")), asAlice("", "setxattr", e.path("write")),
		asAlice("", "link", e.path("write"), e.path("link")), asAlice("", "rename", e.path("link"), e.path("mkdir/moved")),
		asAlice("", "write", e.path("mkdir/inside")), owned(e.path("mkdir/inside"), 1000), asAlice("", "remove", e.path("mkdir/inside")),
		asAlice("refused", "chown", e.path("write"), "0")); err != nil {
		return err
	}
	// Root makes a file in her folder, and it is root's.
	return first(put(e.path("mkdir/roots"), "r"), owned(e.path("mkdir/roots"), 0), holds(e.path("write"), ""))
}

func caseRights(e *env) error {
	if err := first(put(e.path("secret"), "s"), os.Chmod(e.path("secret"), 0o600), put(e.path("seen"), "s"),
		os.Mkdir(e.path("closed"), 0o700), put(e.path("closed/f"), "s"), os.Mkdir(e.path("open"), 0o777)); err != nil {
		return err
	}
	for _, try := range [][]string{
		{"read", e.path("secret")}, {"write", e.path("secret")}, {"write", e.path("seen")}, {"truncate", e.path("seen")},
		{"chmod", e.path("seen"), "777"}, {"chown", e.path("seen"), "1750"}, {"touch", e.path("seen")},
		{"setxattr", e.path("seen")}, {"remove", e.path("seen")}, {"rename", e.path("seen"), e.path("open/mine")},
		{"write", e.path("new")}, {"mkdir", e.path("newdir")}, {"symlink", e.path("newlink")}, {"mkfifo", e.path("newfifo")},
		{"list", e.path("closed")}, {"read", e.path("closed/f")}, {"remove", e.path("closed/f")},
	} {
		if err := asAlice("refused", try[0], try[1:]...); err != nil {
			return err
		}
	}
	return first(asAlice("", "read", e.path("seen")), asAlice("", "list", e.dir), asAlice("", "write", e.path("open/f")),
		holds(e.path("secret"), "s"), holds(e.path("seen"), "s"), lists(e.dir, "closed/ open/ secret seen"))
}

func caseSticky(e *env) error {
	if err := first(os.Mkdir(e.path("tmp"), 0o777), unix.Chmod(e.path("tmp"), 0o1777), put(e.path("tmp/roots"), "r"),
		os.Chmod(e.path("tmp/roots"), 0o666)); err != nil {
		return err
	}
	if err := first(asAlice("", "write", e.path("tmp/roots")), asAlice("refused", "remove", e.path("tmp/roots")),
		asAlice("refused", "rename", e.path("tmp/roots"), e.path("tmp/x")), asAlice("", "write", e.path("tmp/hers"))); err != nil {
		return err
	}
	if e.owner != 1000 {
		return nil
	}
	return asAlice("", "remove", e.path("tmp/hers"))
}

// caseGroups are rights by a supplementary group.
func caseGroups(e *env) error {
	if err := first(put(e.path("f"), "shared"), os.Chown(e.path("f"), 0, 2000), os.Chmod(e.path("f"), 0o660),
		put(e.path("g"), "not"), os.Chown(e.path("g"), 0, 3000), os.Chmod(e.path("g"), 0o660)); err != nil {
		return err
	}
	return first(asAlice("", "read", e.path("f")), asAlice("", "write", e.path("f")), holds(e.path("f"), "written"),
		asAlice("refused", "read", e.path("g")), asAlice("refused", "write", e.path("g")))
}

// caseSetgid wants what is made in a setgid folder to have the folder's group.
func caseSetgid(e *env) error {
	if err := first(os.Mkdir(e.path("d"), 0o755), os.Chown(e.path("d"), 1000, 2000), unix.Chmod(e.path("d"), 0o2775)); err != nil {
		return err
	}
	if err := first(asAlice("", "write", e.path("d/f")), asAlice("", "mkdir", e.path("d/sub")), put(e.path("d/roots"), "")); err != nil {
		return err
	}
	for name, mode := range map[string]uint32{"d/f": 0, "d/sub": 0o2000, "d/roots": 0} {
		var st unix.Stat_t
		if err := first(unix.Stat(e.path(name), &st), want("group of "+name, st.Gid, 2000), want("setgid of "+name, st.Mode&0o2000, mode)); err != nil {
			return err
		}
	}
	return nil
}

// caseSetuid wants a write by another user to take the setuid bit.
func caseSetuid(e *env) error {
	if err := first(put(e.path("f"), "x"), unix.Chmod(e.path("f"), 0o6777)); err != nil {
		return err
	}
	var st unix.Stat_t
	return first(asAlice("", "write", e.path("f")), unix.Stat(e.path("f"), &st), want("mode", st.Mode&0o7777, 0o777))
}
