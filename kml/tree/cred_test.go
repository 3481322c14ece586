package tree

import (
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCredLeavesNothing: whatever a user's operation does, the goroutine is
// itself again behind it, and so is every other.
func TestCredLeavesNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to be somebody else")
	}
	ids := func() (uid, gid uintptr, had caps) {
		uid, _, _ = unix.RawSyscall(unix.SYS_SETFSUID, ^uintptr(0), 0, 0)
		gid, _, _ = unix.RawSyscall(unix.SYS_SETFSGID, ^uintptr(0), 0, 0)
		had, err := takeCaps(nil)
		if err != nil {
			t.Error(err)
		}
		return uid, gid, had
	}
	u0, g0, c0 := ids()
	if u0 != 0 || c0 == (caps{}) {
		t.Fatalf("root is %d with capabilities %v", u0, c0)
	}
	var g sync.WaitGroup
	for i := range 16 {
		g.Go(func() {
			c := &Cred{UID: uint32(2000 + i), GID: uint32(3000 + i), Groups: []uint32{7}}
			for range 200 {
				if err := c.as(func() error {
					if u, gid, had := ids(); u != uintptr(c.UID) || gid != uintptr(c.GID) || had != (caps{}) {
						t.Errorf("user %d acts as %d:%d with capabilities %v", c.UID, u, gid, had)
					}
					return nil
				}); err != nil {
					t.Error(err)
				}
				if u, gid, had := ids(); u != 0 || gid != g0 || had != c0 {
					t.Errorf("behind it the goroutine is %d:%d with capabilities %v", u, gid, had)
				}
			}
		})
	}
	g.Wait()
	func() {
		defer func() { _ = recover() }()
		_ = (&Cred{UID: 2000}).as(func() error { panic("in the middle") })
	}()
	if u, _, had := ids(); u != 0 || had != c0 {
		t.Errorf("behind a panic the goroutine is %d with capabilities %v", u, had)
	}
}
