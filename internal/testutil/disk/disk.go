package disk

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

// Disk is a file system on a loop device, mounted. It is for one goroutine, but
// for CutPower.
type Disk struct {
	Mnt  string // where it is mounted
	Lost int    // writes that did not come to a lossy disk so far

	img, kind, opts string
	rnd             *rand.Rand // of a lossy disk
	lossy           *lossy     // while it is mounted
}

// size is that of a disk, in bytes, where a test has no wish.
const size = 400 << 20

// New makes and mounts a file system of a kind (ext4, xfs, btrfs). It is unmounted
// at the end of the test. The test is skipped where it cannot be.
func New(t testing.TB, kind string) *Disk {
	t.Helper()
	return NewOf(t, kind, size, nil)
}

// NewOf is New with a size in bytes. Where losing is not nil the power is cut at
// the disk, which loses what it says of what was not flushed; else at the file
// system, which is told to stop.
func NewOf(t testing.TB, kind string, size int64, losing *rand.Rand) *Disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	mkfs, err := exec.LookPath("mkfs." + kind)
	if err != nil {
		t.Skipf("no mkfs.%s here", kind)
	}
	d := &Disk{img: filepath.Join(t.TempDir(), "img"), Mnt: t.TempDir(), kind: kind, rnd: losing}
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
	d.Mount(t)
	t.Cleanup(func() {
		if d.lossy == nil || t.Failed() {
			_ = unix.Unmount(d.Mnt, unix.MNT_DETACH)
			if d.lossy != nil {
				d.lossy.abandon()
			}
			return
		}
		d.Unmount(t)
	})
	return d
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Mount mounts what was unmounted.
func (d *Disk) Mount(t testing.TB) {
	t.Helper()
	if d.rnd != nil {
		d.lossy = newLossy(t, d.img, d.Mnt, d.rnd.Uint64())
	}
	if out, err := exec.Command("mount", "-t", d.kind, "-o", "loop"+d.opts, d.device(), d.Mnt).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
}

// Unmount ends when the file system is gone. It may live on for a while in a mount
// namespace that another process made of this one meanwhile, and a mount of the
// image would then be the one that was shut down. The loop device goes with it.
func (d *Disk) Unmount(t testing.TB) {
	t.Helper()
	end := time.Now().Add(2 * time.Minute)
	for {
		err := unix.Unmount(d.Mnt, 0)
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
		d.lossy = nil
	}
}

// device is the file that the loop device has.
func (d *Disk) device() string {
	if d.lossy != nil {
		return d.lossy.path()
	}
	return d.img
}

// attached says that a loop device has the image.
func (d *Disk) attached(t testing.TB) bool {
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

// CutPower shuts the file system down without writing its journal out:
// EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN with their NOLOGFLUSH flag. A lossy disk
// fails from now on. It is to be unmounted and mounted again then.
func (d *Disk) CutPower(t testing.TB) {
	t.Helper()
	if d.lossy != nil {
		d.Lost += d.lossy.cut(t)
		return
	}
	const shutdown, noLogFlush = 0x8004587d, 2
	f, err := os.Open(d.Mnt)
	ok(t, err)
	defer f.Close()
	ok(t, unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noLogFlush))
}
