package tree

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// TestStamps: a stamp stands for an inode while its change time does, and is not
// given before that is past.
func TestStamps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	ok(t, os.WriteFile(path, nil, 0o600))
	look := func() (o *Object, st unix.Statx_t) {
		ok(t, statAt(unix.AT_FDCWD, path, &st))
		h := must[[]byte](t)(HandleAt(unix.AT_FDCWD, path))
		return &Object{OID: kml.MakeOID(1, 7), Ino: st.Ino, Handle: h}, st
	}
	var s stamps
	o, st := look()
	st.Ctime.Sec += 3600 // it was just made, however slow this machine is
	s.put(o, &st)
	if s.has(o, &st) {
		t.Error("a stamp was given while the change time may come again")
	}
	// Time passes.
	st.Ctime.Sec -= 2 * 3600
	s.put(o, &st)
	if !s.has(o, &st) {
		t.Error("no stamp")
	}
	later := st
	later.Ctime.Nsec++
	other := *o
	other.Handle = []byte("another inode")
	elsewhere := st
	elsewhere.Ino++
	if s.has(o, &later) || s.has(&other, &st) || s.has(o, &elsewhere) {
		t.Error("a stamp of another time or inode counts")
	}
}
