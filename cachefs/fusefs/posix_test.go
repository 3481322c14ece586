package fusefs

import (
	"maps"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"

	"github.com/mezzofs/mezzo/internal/testutil"
)

// knownFailures are the cases of posixtest that fail, with the reason. One that
// passes has to leave the list.
var knownFailures = map[string]string{
	"FcntlFlockLocksFile": "wants two descriptors of one process to exclude each other with POSIX locks, which fcntl(2) says they do not: they have one owner. It fails on ext4 as well",
}

// TestPosix runs go-fuse's conformance cases on a mount of a tree, on the
// temporary folder's file system and on tmpfs.
func TestPosix(t *testing.T) {
	needFuse(t)
	for _, place := range []struct{ name, dir string }{{"disk", ""}, {"tmpfs", "/dev/shm"}} {
		t.Run(place.name, func(t *testing.T) {
			for _, name := range slices.Sorted(maps.Keys(posixtest.All)) {
				t.Run(name, func(t *testing.T) {
					if _, known := knownFailures[name]; known && os.Getenv("FUSEFS_KNOWN") == "" {
						mustFail(t)
						return
					}
					testutil.CheckLeaks(t)
					tr := newTree(t, tempDir(t, place.dir))
					mnt, _ := mountAt(t, tr, Options{Door: 1})
					posixtest.All[name](t, mnt)
				})
			}
		})
	}
}

// mustFail runs the running subtest in a process of its own, where it has to
// fail.
func mustFail(t *testing.T) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "FUSEFS_KNOWN=1")
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Errorf("a case listed as failing passes: take it off the list\n%s", out)
	}
}
