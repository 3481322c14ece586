package tree

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// disk is a file system on a loop device.
type disk struct {
	img, mnt, kind, opts string

	// rnd: its power is cut at the disk, which loses what it had not flushed; nil:
	// at the file system, which is told to stop.
	rnd   *rand.Rand
	lossy *lossyFile // while it is mounted
	lost  int        // writes that did not come to the disk
}

func newDisk(t *testing.T, kind string) *disk {
	t.Helper()
	return newDiskOf(t, kind, 400<<20, nil)
}

func newDiskOf(t *testing.T, kind string, size int64, rnd *rand.Rand) *disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	mkfs, err := exec.LookPath("mkfs." + kind)
	if err != nil {
		t.Skipf("no mkfs.%s here", kind)
	}
	d := &disk{img: filepath.Join(t.TempDir(), "img"), mnt: t.TempDir(), kind: kind, rnd: rnd}
	f, err := os.Create(d.img)
	ok(t, err)
	ok(t, f.Truncate(size))
	ok(t, f.Close())
	args := []string{"-q", d.img}
	if kind == "btrfs" {
		args = []string{"-q", "-m", "single", d.img}
	}
	if kind == "ext4" {
		d.opts = ",noauto_da_alloc"
		args = []string{"-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1", d.img}
	}
	if out, err := exec.Command(mkfs, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", mkfs, err, out)
	}
	d.mount(t)
	t.Cleanup(func() {
		if d.lossy == nil || t.Failed() {
			_ = unix.Unmount(d.mnt, unix.MNT_DETACH)
			return
		}
		d.unmount(t)
	})
	return d
}

func (d *disk) mount(t *testing.T) {
	t.Helper()
	if d.rnd != nil {
		d.lossy = newLossy(t, d.img, d.rnd)
	}
	if out, err := exec.Command("mount", "-t", d.kind, "-o", "loop"+d.opts, d.device(), d.mnt).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
}

// unmount ends when the file system is gone. It may live on for a while in a mount
// namespace that another process made of this one meanwhile, and a mount of the
// image would then be the one that was shut down. The loop device goes with it.
func (d *disk) unmount(t *testing.T) {
	t.Helper()
	end := time.Now().Add(2 * time.Minute)
	for {
		err := unix.Unmount(d.mnt, 0)
		if err == nil {
			break
		}
		// A process that was killed may still be letting go.
		if err != unix.EBUSY || time.Now().After(end) {
			t.Fatal(err)
		}
		<-time.After(time.Millisecond)
	}
	for d.attached(t) {
		if time.Now().After(end) {
			t.Fatalf("%s is still mounted somewhere", d.img)
		}
		<-time.After(time.Millisecond)
	}
	if d.lossy != nil {
		d.lossy.close(t)
		d.lost += d.lossy.dropped
	}
}

// device is the file that the loop device has.
func (d *disk) device() string {
	if d.lossy != nil {
		return d.lossy.path()
	}
	return d.img
}

// attached says that a loop device has the image.
func (d *disk) attached(t *testing.T) bool {
	t.Helper()
	all, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	ok(t, err)
	for _, f := range all {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), d.device()) {
			return true
		}
	}
	return false
}

// cutPower shuts the file system down without writing its journal out:
// EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN with their NOLOGFLUSH flag.
func (d *disk) cutPower(t *testing.T) {
	t.Helper()
	if d.lossy != nil {
		d.lossy.cut(t)
		return
	}
	const shutdown, noLogFlush = 0x8004587d, 2
	f, err := os.Open(d.mnt)
	ok(t, err)
	defer f.Close()
	ok(t, unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noLogFlush))
}
