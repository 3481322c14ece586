package tree

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
)

// stepOp makes the test binary a process that does one operation, in the
// fileset that crashDir names, and is killed at the step that fault.Env names.
const stepOp = "MEZZO_TEST_CRASH_OP"

// stage is a fileset with something of each kind in it.
type stage struct {
	tr   *Tree
	dirs map[string]kml.OID
	objs map[string]kml.OID
}

func stageOptions() Options {
	return Options{NoWatch: true, SyncEvery: time.Hour, StoreIdle: time.Hour, RetainSize: 1, RetainAge: 1}
}

// setStage fills a new fileset.
func setStage(dir string) (*stage, error) {
	if err := Init(dir, Options{NoWatch: true}); err != nil {
		return nil, err
	}
	tr, err := Open(dir, stageOptions())
	if err != nil {
		return nil, err
	}
	s := &stage{tr: tr, dirs: map[string]kml.OID{"": kml.RootOID}, objs: map[string]kml.OID{}}
	for _, d := range []string{"d", "e", "empty"} {
		a, err := tr.Mkdir(ctx, nil, kml.RootOID, d, 0o755)
		if err != nil {
			return nil, err
		}
		s.dirs[d] = a.OID
	}
	for _, f := range []string{"f", "g", "linked", "x"} {
		a, h, err := tr.Create(ctx, nil, s.dirs["d"], f, unix.O_RDWR, 0o644)
		if err != nil {
			return nil, err
		}
		if _, err := h.WriteAt(ctx, []byte("contents of "+f), 0); err != nil {
			return nil, err
		}
		if err := h.Close(); err != nil {
			return nil, err
		}
		s.objs[f] = a.OID
	}
	if _, err := tr.Link(ctx, nil, s.objs["linked"], s.dirs["e"], "too"); err != nil {
		return nil, err
	}
	if err := tr.Setxattr(ctx, nil, s.objs["x"], "user.x", []byte("was"), 0); err != nil {
		return nil, err
	}
	return s, tr.Commit(ctx)
}

func (s *stage) write(name string, flags int, off int64, fsync bool) error {
	h, err := s.tr.Open(ctx, nil, s.objs[name], unix.O_RDWR|flags)
	if err != nil {
		return err
	}
	_, err = h.WriteAt(ctx, []byte("rewritten"), off)
	if err == nil && fsync {
		err = h.Fsync(ctx, false)
	}
	return errors.Join(err, h.Close())
}

// fill appends notes until the next record begins a segment.
func (s *stage) fill() error {
	note := strings.Repeat("note ", 24<<10)
	for n := len(s.tr.log.Segments()); ; {
		segs := s.tr.log.Segments()
		left := int64(64<<20) - segs[len(segs)-1].Size
		if len(segs) > n || left < 1<<10 {
			return nil
		}
		size := min(len(note), int(left-900))
		if err := s.tr.log.Append(&kml.Record{Op: kml.OpMark, Mark: kml.MarkNote, Name: note[:max(0, size)]}); err != nil {
			return err
		}
	}
}

// steps are the operations; before is what is done to get there, unarmed.
var steps = []struct {
	name   string
	before func(s *stage) error
	do     func(s *stage) error
}{
	{name: "create", do: func(s *stage) error {
		_, h, err := s.tr.Create(ctx, nil, s.dirs["d"], "new", unix.O_RDWR, 0o640)
		if err == nil {
			err = h.Close()
		}
		return err
	}},
	{name: "mkdir", do: func(s *stage) error {
		_, err := s.tr.Mkdir(ctx, nil, s.dirs["d"], "new", 0o750)
		return err
	}},
	{name: "symlink", do: func(s *stage) error {
		_, err := s.tr.Symlink(ctx, nil, s.dirs["d"], "new", "target")
		return err
	}},
	{name: "mknod", do: func(s *stage) error {
		_, err := s.tr.Mknod(ctx, nil, s.dirs["d"], "new", unix.S_IFIFO|0o600, 0)
		return err
	}},
	{name: "link", do: func(s *stage) error {
		_, err := s.tr.Link(ctx, nil, s.objs["f"], s.dirs["e"], "new")
		return err
	}},
	{name: "unlink", do: func(s *stage) error { return s.tr.Unlink(ctx, nil, s.dirs["d"], "f") }},
	{name: "unlink one of two", do: func(s *stage) error { return s.tr.Unlink(ctx, nil, s.dirs["d"], "linked") }},
	{name: "rmdir", do: func(s *stage) error { return s.tr.Rmdir(ctx, nil, kml.RootOID, "empty") }},
	{name: "rename", do: func(s *stage) error {
		return s.tr.Rename(ctx, nil, s.dirs["d"], "f", s.dirs["e"], "moved", unix.RENAME_NOREPLACE)
	}},
	{name: "rename over", do: func(s *stage) error { return s.tr.Rename(ctx, nil, s.dirs["d"], "f", s.dirs["d"], "g", 0) }},
	{name: "rename over one of two", do: func(s *stage) error {
		return s.tr.Rename(ctx, nil, s.dirs["d"], "f", s.dirs["e"], "too", 0)
	}},
	{name: "rename a folder", do: func(s *stage) error { return s.tr.Rename(ctx, nil, kml.RootOID, "d", s.dirs["e"], "d", 0) }},
	{name: "exchange", do: func(s *stage) error {
		return s.tr.Rename(ctx, nil, s.dirs["d"], "f", kml.RootOID, "e", unix.RENAME_EXCHANGE)
	}},
	{name: "setattr", do: func(s *stage) error {
		_, err := s.tr.Setattr(ctx, nil, s.objs["f"], nil, SetAttr{Mask: SetMode | SetMtime, Mode: 0o600, Mtime: 5e9})
		return err
	}},
	{name: "setxattr", do: func(s *stage) error { return s.tr.Setxattr(ctx, nil, s.objs["x"], "user.x", []byte("is"), 0) }},
	{name: "removexattr", do: func(s *stage) error { return s.tr.Removexattr(ctx, nil, s.objs["x"], "user.x") }},
	{name: "write", do: func(s *stage) error { return s.write("f", 0, 3, false) }},
	{name: "rewrite", do: func(s *stage) error { return s.write("f", unix.O_TRUNC, 0, false) }},
	{name: "fsync", do: func(s *stage) error { return s.write("f", 0, 100, true) }},
	{name: "truncate", do: func(s *stage) error {
		_, err := s.tr.Setattr(ctx, nil, s.objs["f"], nil, SetAttr{Mask: SetSize, Size: 5})
		return err
	}},
	{name: "replace", do: func(s *stage) error {
		a, err := s.tr.Getattr(ctx, nil, s.objs["linked"])
		if err != nil {
			return err
		}
		staged := filepath.Join(s.tr.Stage(), "9-1")
		if err := os.WriteFile(staged, []byte("uploaded"), 0o600); err != nil {
			return err
		}
		r := &kml.Record{Op: kml.OpStore, OID: a.OID, Time: 1, Origin: kml.Origin{Site: 9, Seq: 1},
			Attr: kml.Attr{Size: 8, Mtime: 5e9}, Base: kml.Base{Pos: kml.Position(a.DataVersion)}}
		if res := s.tr.Reintegrate(ctx, nil, r, staged); res.Status != ReintApplied {
			return fmt.Errorf("%+v", res)
		}
		return nil
	}},
	{name: "new segment", before: (*stage).fill, do: func(s *stage) error {
		for i := range 4 {
			if _, err := s.tr.Mkdir(ctx, nil, s.dirs["d"], strings.Repeat(fmt.Sprint("new", i), 60), 0o750); err != nil {
				return err
			}
		}
		return nil
	}},
	{name: "flush", do: func(s *stage) error {
		if _, err := s.tr.Mkdir(ctx, nil, s.dirs["d"], "new", 0o750); err != nil {
			return err
		}
		if err := s.tr.Commit(ctx); err != nil {
			return err
		}
		return s.tr.index.Flush()
	}},
	{name: "checkpoint", do: func(s *stage) error { return s.tr.checkpoint() }},
	{name: "retain", before: func(s *stage) error {
		if err := s.fill(); err != nil {
			return err
		}
		for range 6 {
			if err := s.tr.log.Append(&kml.Record{Op: kml.OpMark, Mark: kml.MarkNote, Name: strings.Repeat("more", 100)}); err != nil {
				return err
			}
		}
		if _, err := s.tr.Mkdir(ctx, nil, s.dirs["d"], "later", 0o750); err != nil {
			return err
		}
		return s.tr.Commit(ctx)
	}, do: func(s *stage) error {
		_, err := s.tr.retain()
		return err
	}},
}

// stepMain is the process that is killed.
func stepMain(dir, op string) error {
	if op != "none" {
		return stepWork(dir, op)
	}
	if err := fault.Arm(os.Getenv(fault.Env)); err != nil {
		return err
	}
	tr, err := Open(dir, stageOptions())
	if err != nil {
		return err
	}
	return tr.closeParts() // not in order: the next start is an unclean one, too
}

// stepWork fills a fileset and does one operation in it, armed.
func stepWork(dir, op string) error {
	s, err := setStage(dir)
	if err != nil {
		return err
	}
	for _, st := range steps {
		if st.name != op {
			continue
		}
		if st.before != nil {
			if err := st.before(s); err != nil {
				return err
			}
		}
		if err := fault.Arm(os.Getenv(fault.Env)); err != nil {
			return err
		}
		return st.do(s)
	}
	return fmt.Errorf("no operation %q", op)
}

// shape is what a person sees of a directory, path by path; times apart.
func shape(t *testing.T, dir string) map[string]string {
	t.Helper()
	m := map[string]string{}
	ok(t, filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.Name() == ExtDirName {
			return filepath.SkipDir
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		s := fmt.Sprintf("%o", st.Mode)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			x := make([]byte, 16)
			n, _ := unix.Getxattr(path, "user.x", x)
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			s += fmt.Sprintf(" %d %q %q", st.Nlink, b, x[:max(0, n)])
		case unix.S_IFLNK:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			s += " " + to
		}
		if path != dir {
			m[strings.TrimPrefix(path, dir)] = s
		}
		return nil
	}))
	return m
}

// TestKilledAtEveryStep kills a process at each step of each operation, once
// more while the next one puts it right, and holds directory, index and log
// against each other: the operation was done or it was not.
func TestKilledAtEveryStep(t *testing.T) {
	passed, n := map[string]bool{}, 0
	for _, st := range steps {
		// What it passes, and what it leads to.
		dir := t.TempDir()
		s, err := setStage(dir)
		ok(t, err)
		if st.before != nil {
			ok(t, st.before(s))
		}
		was := shape(t, dir)
		var points []string
		remove := fault.Hook(func(name string) {
			if strings.HasPrefix(name, "tree.") || strings.HasPrefix(name, "kml.") {
				points = append(points, name)
			}
		})
		err = st.do(s)
		remove()
		ok(t, err)
		is := shape(t, dir)
		ok(t, s.tr.Close())
		slices.Sort(points)
		points = slices.Compact(points)
		if len(points) == 0 {
			t.Errorf("%s passes no step", st.name)
		}
		for _, p := range points {
			passed[p] = true
			if n++; n%raceFactor != 0 {
				continue
			}
			t.Run(st.name+" "+p, func(t *testing.T) {
				t.Parallel()
				killAtStep(t, st.name, p, was, is)
			})
		}
	}
	for _, p := range []string{"tree.intent", "tree.call", "tree.append", "tree.record", "tree.dirty", "tree.write", "tree.store",
		"tree.replace", "tree.commit.synced", "kml.commit.synced", "kml.mark.appended", "tree.commit.marked", "tree.flush.begun",
		"tree.flush", "kml.roll.begun", "kml.roll.made", "tree.checkpoint.written", "tree.retain.flushed", "kml.drop.removed"} {
		if !passed[p] {
			t.Errorf("no operation passes %s", p)
		}
	}
}

func killAtStep(t *testing.T, op, point string, was, is map[string]string) {
	t.Helper()
	dir := t.TempDir()
	run := func(env ...string) (killed bool) {
		t.Helper()
		exe, err := os.Executable()
		ok(t, err)
		cmd := exec.Command(exe)
		cmd.Env = append(append(os.Environ(), crashDir+"="+dir), env...)
		out, err := cmd.CombinedOutput()
		if err != nil && !strings.Contains(err.Error(), "killed") {
			t.Fatalf("%v: %s", err, out)
		}
		return err != nil
	}
	if !run(stepOp+"="+op, fault.Env+"="+point) {
		t.Fatal("it was not killed there")
	}
	// The next start is killed as well, where it has decided something.
	again := "tree.recover.decided,tree.recover.stored"
	if point == "tree.append" {
		again = "tree.recover.applied"
	}
	run(stepOp+"=none", fault.Env+"="+again)
	tr, err := Open(dir, Options{NoWatch: true})
	ok(t, err)
	defer func() { ok(t, tr.Close()) }()
	got := shape(t, dir)
	done := maps.Equal(got, is)
	if !done && !maps.Equal(got, was) && !partly(op, got) {
		t.Errorf("neither done nor not done: %v", got)
	}
	if !done && slices.Contains([]string{"tree.record", "tree.store"}, point) && op != "new segment" {
		t.Errorf("it is in the log and was not done: %v", got)
	}
	checkAgrees(t, tr)
	if tr.log.Start() == 0 {
		checkReplay(t, tr)
	}
}

// partly: an operation that is several may be done in part.
func partly(op string, got map[string]string) bool {
	switch op {
	case "new segment":
		return got["/d/"+strings.Repeat("new0", 60)] != ""
	case "rewrite":
		return strings.Contains(got["/d/f"], `""`)
	}
	return false
}
