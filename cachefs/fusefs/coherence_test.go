package fusefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// mountTwice mounts one new tree at two places.
func mountTwice(t *testing.T) (a, b string, tr *tree.Tree) {
	t.Helper()
	needFuse(t)
	testutil.CheckLeaks(t)
	tr = newTree(t, t.TempDir())
	a, _ = mountAt(t, tr, Options{Door: 1})
	b, _ = mountAt(t, tr, Options{Door: 2})
	return a, b, tr
}

func exists(p string) bool {
	_, err := os.Lstat(p)
	return err == nil
}

func content(p string) string {
	b, err := os.ReadFile(p)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func names(dir string) string {
	list, err := os.ReadDir(dir)
	if err != nil {
		return err.Error()
	}
	var all []string
	for _, e := range list {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}

// TestTwoMounts changes a tree through one mount and sees it through another,
// whose kernel keeps everything for ever.
func TestTwoMounts(t *testing.T) {
	a, b, _ := mountTwice(t)
	in := func(mnt, p string) string { return filepath.Join(mnt, p) }

	// Nothing there, which is cached; then something.
	if exists(in(b, "new")) {
		t.Fatal("a name nobody made")
	}
	must(t, os.WriteFile(in(a, "new"), []byte("one"), 0o644))
	eventually(t, "a cached absence ends", func() bool { return exists(in(b, "new")) })

	// Contents, cached by reading them, in place and of another length.
	if got := content(in(b, "new")); got != "one" {
		t.Fatalf("read %q", got)
	}
	must(t, os.WriteFile(in(a, "new"), []byte("two, longer"), 0o644))
	eventually(t, "new contents", func() bool { return content(in(b, "new")) == "two, longer" })

	// While it is held open.
	f, err := os.Open(in(b, "new"))
	must(t, err)
	defer f.Close()
	buf := make([]byte, 64)
	n, _ := f.ReadAt(buf, 0)
	if string(buf[:n]) != "two, longer" {
		t.Fatalf("read %q", buf[:n])
	}
	w, err := os.OpenFile(in(a, "new"), os.O_WRONLY, 0)
	must(t, err)
	_, err = w.WriteAt([]byte("2"), 0)
	must(t, err)
	eventually(t, "a write in place, before its close", func() bool {
		n, _ := f.ReadAt(buf, 0)
		return string(buf[:n]) == "2wo, longer"
	})
	must(t, w.Close())

	// Attributes.
	must(t, os.Chmod(in(a, "new"), 0o600))
	eventually(t, "new mode", func() bool {
		st, err := os.Stat(in(b, "new"))
		return err == nil && st.Mode().Perm() == 0o600
	})

	// Names: a listing that is cached, a rename, a removal.
	must(t, os.Mkdir(in(a, "dir"), 0o755))
	eventually(t, "a folder", func() bool { return exists(in(b, "dir")) })
	for i := range 3 {
		if got := names(in(b, "dir")); got != "" {
			t.Fatalf("listing %d: %q", i, got)
		}
	}
	must(t, os.WriteFile(in(a, "dir/x"), nil, 0o644))
	eventually(t, "a new name in a listing", func() bool { return names(in(b, "dir")) == "x" })
	must(t, os.Rename(in(a, "dir/x"), in(a, "dir/y")))
	eventually(t, "a rename", func() bool {
		return names(in(b, "dir")) == "y" && !exists(in(b, "dir/x")) && exists(in(b, "dir/y"))
	})
	must(t, os.Link(in(a, "dir/y"), in(a, "dir/z")))
	eventually(t, "a link count", func() bool {
		var st unix.Stat_t
		return unix.Lstat(in(b, "dir/y"), &st) == nil && st.Nlink == 2
	})
	must(t, os.RemoveAll(in(a, "dir")))
	eventually(t, "a removal", func() bool { return !exists(in(b, "dir")) })

	// A symbolic link's target belongs to the object; the name gets another.
	must(t, os.Symlink("one", in(a, "link")))
	eventually(t, "a link", func() bool { s, _ := os.Readlink(in(b, "link")); return s == "one" })
	must(t, os.Symlink("two", in(a, "link2")))
	must(t, os.Rename(in(a, "link2"), in(a, "link")))
	eventually(t, "another link", func() bool { s, _ := os.Readlink(in(b, "link")); return s == "two" })
}

// TestListingsFollow lists a folder without end while it changes through
// another mount: in the end the cached listing is right.
func TestListingsFollow(t *testing.T) {
	a, b, _ := mountTwice(t)
	end := make(chan struct{})
	listed := make(chan struct{})
	go func() {
		defer close(listed)
		for {
			select {
			case <-end:
				return
			default:
				names(b)
			}
		}
	}()
	var want []string
	for i := range 400 {
		p := filepath.Join(a, fmt.Sprintf("f%03d", i))
		must(t, os.WriteFile(p, nil, 0o644))
		if i%3 == 0 {
			must(t, os.Remove(p))
		} else {
			want = append(want, filepath.Base(p))
		}
	}
	close(end)
	<-listed
	slices.Sort(want)
	eventually(t, "the listing is the folder's", func() bool { return names(b) == strings.Join(want, " ") })
	for i := range 400 {
		if p := filepath.Join(b, fmt.Sprintf("f%03d", i)); exists(p) != (i%3 != 0) {
			t.Errorf("%s: exists %v", p, i%3 == 0)
		}
	}
}

// TestAppendsFromTwoMounts appends to one file through both; each sees all.
func TestAppendsFromTwoMounts(t *testing.T) {
	a, b, _ := mountTwice(t)
	must(t, os.WriteFile(filepath.Join(a, "log"), nil, 0o644))
	eventually(t, "the file", func() bool { return exists(filepath.Join(b, "log")) })
	const each = 50
	done := make(chan error, 2)
	for _, mnt := range []string{a, b} {
		go func() {
			f, err := os.OpenFile(filepath.Join(mnt, "log"), os.O_WRONLY|os.O_APPEND, 0)
			for i := 0; err == nil && i < each; i++ {
				_, err = fmt.Fprintf(f, "line %4d\n", i)
			}
			done <- errors.Join(err, f.Close())
		}()
	}
	must(t, <-done)
	must(t, <-done)
	for _, mnt := range []string{a, b} {
		eventually(t, "every line, whole", func() bool {
			s := content(filepath.Join(mnt, "log"))
			return len(s) == 2*each*10 && strings.Count(s, "line ") == 2*each
		})
	}
}

// TestReaderKeepsItsVersion replaces a file's contents, as a replay does, under
// somebody who reads it.
func TestReaderKeepsItsVersion(t *testing.T) {
	needFuse(t)
	testutil.CheckLeaks(t)
	tr := newTree(t, t.TempDir())
	mnt, _ := mountAt(t, tr, Options{Door: 1})
	p := filepath.Join(mnt, "file")
	old := strings.Repeat("old bytes ", 1000)
	must(t, os.WriteFile(p, []byte(old), 0o644))
	reader, err := os.Open(p)
	must(t, err)
	defer reader.Close()
	var before unix.Stat_t
	must(t, unix.Stat(p, &before))

	newReplacer(t, tr).replace(t, kml.OID(before.Ino), "new")

	eventually(t, "the name has the new contents", func() bool { return content(p) == "new" })
	buf := make([]byte, len(old)+10)
	n, _ := reader.ReadAt(buf, 0)
	if string(buf[:n]) != old {
		t.Errorf("the reader sees %d bytes, %.20q", n, buf[:n])
	}
	if st, err := reader.Stat(); err != nil || st.Size() != int64(len(old)) {
		t.Errorf("the reader's stat: %v %v", st, err)
	}
	var after unix.Stat_t
	must(t, unix.Stat(p, &after))
	if after.Ino != before.Ino || after.Size != 3 {
		t.Errorf("inode %d size %d, was inode %d", after.Ino, after.Size, before.Ino)
	}
	must(t, reader.Close())
	must(t, os.WriteFile(p, []byte("newest"), 0o644))
	if got := content(p); got != "newest" {
		t.Errorf("read %q", got)
	}
	must(t, os.Rename(p, p+"2"))
	if got := content(p + "2"); got != "newest" {
		t.Errorf("read %q", got)
	}
}

// replacer does to objects what a client's stores do.
type replacer struct {
	tr   *tree.Tree
	site kml.SiteID
	seq  uint64
}

func newReplacer(t *testing.T, tr *tree.Tree) *replacer {
	t.Helper()
	site, err := tr.Enrol("other", 0, []byte("key"))
	must(t, err)
	must(t, os.MkdirAll(tr.Stage(), 0o700))
	return &replacer{tr: tr, site: site.ID}
}

func (r *replacer) replace(t *testing.T, oid kml.OID, text string) {
	t.Helper()
	r.seq++
	staged := filepath.Join(r.tr.Stage(), fmt.Sprint(r.seq))
	must(t, os.WriteFile(staged, []byte(text), 0o644))
	a, err := r.tr.Getattr(t.Context(), nil, oid)
	must(t, err)
	res := r.tr.Reintegrate(t.Context(), nil, &kml.Record{
		Op: kml.OpStore, OID: oid, Time: 1, Origin: kml.Origin{Site: r.site, Seq: r.seq},
		Attr: kml.Attr{Size: uint64(len(text)), Mtime: a.Mtime + 1}, Base: kml.Base{Pos: kml.Position(a.DataVersion)},
	}, staged)
	if res.Status != tree.ReintApplied {
		t.Fatalf("store refused: %+v", res)
	}
}

// TestNoReaderSeesTwoVersions reads a file again and again while its contents
// are replaced: what one open reads is of one version.
func TestNoReaderSeesTwoVersions(t *testing.T) {
	needFuse(t)
	testutil.CheckLeaks(t)
	tr := newTree(t, t.TempDir())
	mnt, _ := mountAt(t, tr, Options{Door: 1})
	p := filepath.Join(mnt, "file")
	version := func(i int) string { return strings.Repeat(string(rune('a'+i%26)), 5000*(1+i%7)) }
	must(t, os.WriteFile(p, []byte(version(0)), 0o644))
	oid := kml.OID(stat(t, p).Ino)
	end := make(chan struct{})
	done := make(chan string, 4)
	for range cap(done) {
		go func() {
			for reads := 0; ; reads++ {
				select {
				case <-end:
					done <- ""
					return
				default:
				}
				if err := readVersion(p, reads%2 == 0); err != nil {
					done <- err.Error()
					return
				}
			}
		}()
	}
	r := newReplacer(t, tr)
	const versions = 200
	for i := 1; i <= versions; i++ {
		r.replace(t, oid, version(i))
	}
	close(end)
	for range cap(done) {
		if what := <-done; what != "" {
			t.Error(what)
		}
	}
	eventually(t, "the last version", func() bool { return content(p) == version(versions) })
}

// readVersion reads a file, whole or in small parts, and checks that what it
// reads, and what it is told of the size, is of one version.
func readVersion(p string, whole bool) error {
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	size := 3000
	if whole {
		size = 1 << 20
	}
	var all []byte
	buf := make([]byte, size)
	for err == nil {
		var n int
		n, err = f.ReadAt(buf, int64(len(all)))
		all = append(all, buf[:n]...)
	}
	if err != io.EOF {
		return err
	}
	if len(all) == 0 || int64(len(all)) != st.Size() || len(all)%5000 != 0 || strings.Count(string(all), string(all[:1])) != len(all) {
		return fmt.Errorf("size %d, read %d bytes, from %q to %q", st.Size(), len(all), all[:min(1, len(all))], all[max(0, len(all)-1):])
	}
	return nil
}

// TestManyChanges makes more changes than the queue holds names for, in a
// folder whose lock a lookup holds meanwhile.
func TestManyChanges(t *testing.T) {
	needFuse(t)
	testutil.CheckLeaks(t)
	tr := newTree(t, t.TempDir())
	slow := &slowFS{FS: tr, gate: make(chan struct{})}
	mnt, s := mountAt(t, slow, Options{Door: 1})
	if !s.raw.queue.epoch.Load() {
		t.Skip("this kernel cannot expire all entries at once")
	}
	s.raw.queue.mu.Lock()
	s.raw.queue.max = 100
	s.raw.queue.mu.Unlock()
	const files = 500
	for i := range files { // absences, cached
		if exists(filepath.Join(mnt, fmt.Sprint(i))) {
			t.Fatal("a name nobody made")
		}
	}
	looked := make(chan bool)
	go func() { looked <- exists(filepath.Join(mnt, "slow")) }()
	eventually(t, "the lookup waits", func() bool { return slow.waits.Load() == 1 })
	for i := range files {
		_, h, err := tr.Create(t.Context(), nil, kml.RootOID, fmt.Sprint(i), os.O_EXCL|os.O_WRONLY, 0o600)
		must(t, err)
		must(t, h.Close())
	}
	close(slow.gate)
	<-looked
	eventually(t, "every absence ended", func() bool {
		for i := range files {
			if !exists(filepath.Join(mnt, fmt.Sprint(i))) {
				return false
			}
		}
		return true
	})
	eventually(t, "nothing waits any more", func() bool {
		q := s.raw.queue
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.pending == 0 && len(q.work) == 0
	})
}

// TestOwnChangesAreNotRevoked checks that what a mount did itself stays in its
// kernel's cache.
func TestOwnChangesAreNotRevoked(t *testing.T) {
	needFuse(t)
	testutil.CheckLeaks(t)
	count := &countFS{FS: newTree(t, t.TempDir())}
	mnt, _ := mountAt(t, count, Options{Door: 1})
	p := filepath.Join(mnt, "f")
	must(t, os.WriteFile(p, []byte("text"), 0o600))
	if got := content(p); got != "text" {
		t.Fatalf("read %q", got)
	}
	// A read moves the access time, which is asked for once.
	var st unix.Stat_t
	must(t, unix.Stat(p, &st))
	before := count.lookups.Load()
	for range 100 {
		must(t, unix.Stat(p, &st))
	}
	if n := count.lookups.Load() - before; n != 0 {
		t.Errorf("%d requests for 100 stats", n)
	}
}

// countFS counts what the kernel asks for because it does not know.
type countFS struct {
	tree.FS
	lookups atomic.Int64
}

func (f *countFS) Lookup(ctx context.Context, c *tree.Cred, p kml.OID, name string) (tree.Attr, error) {
	f.lookups.Add(1)
	return f.FS.Lookup(ctx, c, p, name)
}

func (f *countFS) Getattr(ctx context.Context, c *tree.Cred, oid kml.OID) (tree.Attr, error) {
	f.lookups.Add(1)
	return f.FS.Getattr(ctx, c, oid)
}
