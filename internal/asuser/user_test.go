package asuser

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestDo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to be somebody else")
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	// Folders above are nobody else's to search.
	at, err := unix.Open(dir, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(at)
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, nil, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(secret, 0, 4242); err != nil {
		t.Fatal(err)
	}
	stranger, member := New(1234, 1234, nil), New(1235, 1235, []uint32{7, 4242})
	defer stranger.Close()
	defer member.Close()
	open := func() error {
		fd, err := unix.Openat(at, "secret", unix.O_RDONLY, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	var g sync.WaitGroup
	for range 20 {
		g.Go(func() {
			for range 20 {
				if err := stranger.Do(open); !errors.Is(err, syscall.EACCES) {
					t.Errorf("stranger: %v, want EACCES", err)
				}
				if err := member.Do(open); err != nil {
					t.Errorf("member: %v", err)
				}
				if err := open(); err != nil {
					t.Errorf("root: %v", err)
				}
			}
		})
	}
	g.Wait()
	mine := filepath.Join(dir, "mine")
	err = member.Do(func() error { return unix.Mkdirat(at, "mine", 0o755) })
	var st unix.Stat_t
	if err := errors.Join(err, unix.Stat(mine, &st)); err != nil {
		t.Fatal(err)
	}
	if st.Uid != 1235 || st.Gid != 1235 {
		t.Errorf("made by %d:%d, want 1235:1235", st.Uid, st.Gid)
	}
	// Nothing is left that root could do.
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	err = member.Do(func() error { return unix.Capget(&hdr, &caps[0]) })
	if err != nil || caps[0].Effective|caps[1].Effective|caps[0].Permitted|caps[1].Permitted != 0 {
		t.Errorf("capabilities left: %+v, %v", caps, err)
	}
	member.Close()
	if err := member.Do(open); err != nil {
		t.Errorf("after Close: %v", err)
	}
}

func BenchmarkDo(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root to be somebody else")
	}
	u := New(1234, 1234, nil)
	defer u.Close()
	for b.Loop() {
		if err := u.Do(func() error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
