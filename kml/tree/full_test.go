package tree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/internal/testutil/disk"
	"github.com/mezzofs/mezzo/kml"
)

// operations is every change of a tree, each to be made again and again.
func operations(t *testing.T, tr *Tree, tag string) map[string]func() error {
	t.Helper()
	n := 0
	name := func() string { n++; return fmt.Sprintf("a name that takes some room in its folder %s %d", tag, n) }
	fresh := func() kml.OID { return put(t, tr, kml.RootOID, name(), "some contents").OID }
	a, dir := fresh(), must[Attr](t)(tr.Mkdir(ctx, nil, kml.RootOID, name(), 0o755)).OID
	written := must[Handle](t)(tr.Open(ctx, nil, fresh(), unix.O_RDWR))
	t.Cleanup(func() { written.Close() })
	// What goes is made while there is room.
	var gone, goneDirs, moved, victims, linked []string
	for range 40 {
		for _, l := range []*[]string{&gone, &moved, &victims, &linked} {
			s := name()
			put(t, tr, kml.RootOID, s, "x")
			*l = append(*l, s)
		}
		s := name()
		must[Attr](t)(tr.Mkdir(ctx, nil, kml.RootOID, s, 0o755))
		goneDirs = append(goneDirs, s)
	}
	take := func(l *[]string) string { s := (*l)[0]; *l = append((*l)[1:], s); return s }
	off, mode := int64(0), uint32(0)
	remade := func(err error, again func()) error {
		if err == nil {
			again()
		}
		return err
	}
	return map[string]func() error{
		"create": func() error {
			_, h, err := tr.Create(ctx, nil, dir, name(), unix.O_RDWR, 0o644)
			if err == nil {
				err = h.Close()
			}
			return err
		},
		"mkdir":   func() error { _, err := tr.Mkdir(ctx, nil, dir, name(), 0o755); return err },
		"symlink": func() error { _, err := tr.Symlink(ctx, nil, dir, name(), name()); return err },
		"mknod":   func() error { _, err := tr.Mknod(ctx, nil, dir, name(), unix.S_IFIFO|0o600, 0); return err },
		"link":    func() error { _, err := tr.Link(ctx, nil, a, dir, name()); return err },
		"rename": func() error {
			s, to := take(&moved), name()
			return remade(tr.Rename(ctx, nil, kml.RootOID, s, kml.RootOID, to, 0), func() { moved[len(moved)-1] = to })
		},
		"rename over": func() error {
			if len(victims) < 2 {
				return nil
			}
			from, to := victims[0], victims[1]
			return remade(tr.Rename(ctx, nil, kml.RootOID, from, kml.RootOID, to, 0), func() { victims = victims[1:] })
		},
		"unlink": func() error {
			if len(gone) == 0 {
				return nil
			}
			return remade(tr.Unlink(ctx, nil, kml.RootOID, gone[0]), func() { gone = gone[1:] })
		},
		"rmdir": func() error {
			if len(goneDirs) == 0 {
				return nil
			}
			return remade(tr.Rmdir(ctx, nil, kml.RootOID, goneDirs[0]), func() { goneDirs = goneDirs[1:] })
		},
		"setattr": func() error {
			mode++
			_, err := tr.Setattr(ctx, nil, a, nil, SetAttr{Mask: SetMode, Mode: 0o600 + mode%2})
			return err
		},
		"setxattr": func() error { return tr.Setxattr(ctx, nil, a, "user.x", make([]byte, 10+n%1000), 0) },
		"write": func() error {
			_, err := written.WriteAt(ctx, make([]byte, 32<<10), off)
			off += 32 << 10
			return err
		},
		"truncate": func() error {
			_, err := tr.Setattr(ctx, nil, a, nil, SetAttr{Mask: SetSize, Size: uint64(n)})
			return err
		},
		"flush":  func() error { return written.Flush(ctx) },
		"fsync":  func() error { return written.Fsync(ctx, false) },
		"commit": func() error { return tr.Commit(ctx) },
	}
}

// TestDiskFull has every operation run into a full disk: it works or says ENOSPC,
// log and tree agree, and all goes on when there is room again.
func TestDiskFull(t *testing.T) {
	d := disk.NewOf(t, "ext4", 64<<20, nil)
	t.Cleanup(func() { d.Unmount(t) })
	dir, filler := filepath.Join(d.Mnt, "tree"), filepath.Join(d.Mnt, "filler")
	ok(t, os.Mkdir(dir, 0o755))
	ok(t, Init(dir, Options{NoWatch: true}))
	tr := must[*Tree](t)(Open(dir, Options{NoWatch: true}))
	ops := operations(t, tr, "")
	ok(t, tr.Commit(ctx))
	f := must[*os.File](t)(os.Create(filler))
	for size := int64(1 << 20); size >= 512; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			wantErr(t, err, unix.ENOSPC)
			size /= 2
		}
	}
	ok(t, f.Sync())
	ok(t, f.Close())
	full := 0
	for name, op := range ops {
		for range 300 {
			err := op()
			if err == nil {
				continue
			}
			if !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("%s on a full disk: %v", name, err)
			}
			full++
			break
		}
		if err := tr.broken(); err != nil {
			t.Fatalf("%s stopped the fileset: %v", name, err)
		}
	}
	if full < 3 {
		t.Errorf("only %d operations found the disk full", full)
	}
	ok(t, os.Remove(filler))
	mnt := must[*os.File](t)(os.Open(d.Mnt))
	ok(t, unix.Syncfs(int(mnt.Fd()))) // its blocks are free once the journal says so
	ok(t, mnt.Close())
	ok(t, tr.Commit(ctx))
	for name, op := range ops {
		if err := op(); err != nil {
			t.Errorf("%s with room again: %v", name, err)
		}
	}
	ok(t, ops["flush"]())
	ok(t, tr.Commit(ctx))
	if end := tr.log.End(); tr.Durable() < end-1 {
		t.Errorf("durable up to %v of %v", tr.Durable(), end)
	}
	checkAgrees(t, tr)
	checkReplay(t, tr)
	ok(t, tr.Close())
	tr = must[*Tree](t)(Open(dir, Options{NoWatch: true}))
	checkAgrees(t, tr)
	ok(t, tr.Close())
}

// failing makes a step fail while the counter is above 0, and counts it down.
func failing(t *testing.T, step string, err error) *atomic.Int64 {
	n := new(atomic.Int64)
	t.Cleanup(fault.Fail(step, func() error {
		if n.Add(-1) >= 0 {
			return err
		}
		return nil
	}))
	return n
}

// TestFailingDisk has each step that writes fail under every operation.
func TestFailingDisk(t *testing.T) {
	for _, c := range []struct {
		step  string
		err   syscall.Errno
		stops bool // the fileset, until it is opened again
	}{
		{"tree.slots", unix.EIO, false},
		{"kml.allocate", unix.ENOSPC, false},
		{"kml.write", unix.EIO, true},
		{"kml.sync", unix.EIO, true},
		{"tree.sync", unix.EIO, false},
		{"tree.flush", unix.EIO, false},
	} {
		t.Run(c.step, func(t *testing.T) {
			dir := t.TempDir()
			ok(t, Init(dir, Options{NoWatch: true}))
			o := Options{NoWatch: true, Sync: SyncNever}
			tr := must[*Tree](t)(Open(dir, o))
			ops := operations(t, tr, "")
			fail := failing(t, c.step, c.err)
			hits := 0
			for name, op := range ops {
				durable := tr.Durable()
				fail.Store(1)
				err := op()
				hit := fail.Load() <= 0
				fail.Store(0)
				if err != nil && !errors.Is(err, c.err) {
					t.Fatalf("%s: %v", name, err)
				}
				if !hit && err != nil {
					t.Fatalf("%s failed by itself: %v", name, err)
				}
				if hit {
					hits++
				}
				if hit && (c.step == "kml.sync" || c.step == "tree.sync") && tr.Durable() > durable {
					t.Errorf("%s: durable went from %v to %v though its sync failed", name, durable, tr.Durable())
				}
				// A mark that was not written leaves nothing half done.
				mark := c.step == "kml.write" && (name == "fsync" || name == "commit")
				if broken := tr.broken() != nil; broken != (c.stops && hit) && !mark {
					t.Fatalf("%s: stopped is %v: %v", name, broken, tr.broken())
				}
				if _, err := tr.Getattr(ctx, nil, kml.RootOID); err != nil {
					t.Errorf("%s: reading: %v", name, err)
				}
				if tr.broken() == nil {
					continue
				}
				_, err = tr.Mkdir(ctx, nil, kml.RootOID, "refused", 0o755)
				wantErr(t, err, unix.EROFS)
				tr.Close() // says what it could not do
				tr = must[*Tree](t)(Open(dir, o))
				checkAgrees(t, tr)
				ops2 := operations(t, tr, name)
				for k := range ops {
					ops[k] = ops2[k]
				}
			}
			ok(t, ops["flush"]())
			if hits == 0 && c.step != "tree.flush" && c.step != "kml.allocate" {
				t.Error("the step was never met")
			}
			checkAgrees(t, tr)
			checkReplay(t, tr)
			ok(t, tr.Commit(ctx))
			ok(t, tr.index.Flush())
			if tr.Durable() < tr.log.End()-1 {
				t.Errorf("durable up to %v of %v", tr.Durable(), tr.log.End())
			}
			ok(t, tr.Close())
		})
	}
}

// TestLostPagesAreWrittenAgain: what memory has and the disk has not is written
// once more before anything is promised, and keeps its times.
func TestLostPagesAreWrittenAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	want := make([]byte, 3<<20+123)
	for i := range want {
		want[i] = byte(i >> 12)
	}
	ok(t, os.WriteFile(path, want, 0o600))
	disk := path + ".disk" // stands for what the device holds
	lost := append([]byte{}, want...)
	lost[2<<20+7] ^= 1
	ok(t, os.WriteFile(disk, lost, 0o600))
	open := func(path string) int {
		fd := must[int](t)(unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0))
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	fd := open(path)
	same := open(path)
	if wrote, err := rewriteLost(ctx, fd, same, int64(len(want))); wrote || err != nil {
		t.Errorf("what is on the disk was written again: %v %v", wrote, err)
	}
	if wrote, err := rewriteLost(ctx, fd, open(disk), int64(len(want))); !wrote || err != nil {
		t.Errorf("lost bytes were not written again: %v %v", wrote, err)
	}
	if wrote, err := rewriteLost(ctx, fd, -1, int64(len(want))); !wrote || err != nil {
		t.Errorf("without a look at the disk: %v %v", wrote, err)
	}
	if got := must[[]byte](t)(os.ReadFile(path)); string(got) != string(want) {
		t.Error("the file changed")
	}
}
