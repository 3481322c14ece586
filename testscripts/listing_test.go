package testscripts

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestListingGoesOn reads a folder from what the kernel has kept of an earlier
// listing, takes that away in the middle, and removes what was read, as rm -r
// does: the rest has to come, each name once, in both kinds of mount.
func TestListingGoesOn(t *testing.T) {
	if ok, _ := condition("fuse"); !ok {
		t.Skip("no /dev/fuse")
	}
	const files = 2000
	m := newModel(t)
	for _, mnt := range []string{m.up, m.cached} {
		dir := filepath.Join(mnt, filepath.Base(mnt))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for i := range files {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file %d", i)), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if names, err := os.ReadDir(dir); err != nil || len(names) != files {
			t.Fatalf("%s: %d names of %d: %v", dir, len(names), files, err)
		}
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		seen := map[string]int{}
		buf := make([]byte, 4096)
		for part := 0; ; part++ {
			n, err := unix.Getdents(fd, buf)
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				break
			}
			_, _, names := unix.ParseDirent(buf[:n], -1, nil)
			for i, name := range names {
				seen[name]++
				if part == 1 && i%2 == 0 {
					if err := os.Remove(filepath.Join(dir, name)); err != nil {
						t.Fatal(err)
					}
				}
			}
			if part == 0 {
				if err := unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED); err != nil {
					t.Fatal(err)
				}
			}
		}
		for i := range files {
			if name := fmt.Sprintf("file %d", i); seen[name] != 1 {
				t.Errorf("%s: %q came %d times", dir, name, seen[name])
			}
		}
	}
}
