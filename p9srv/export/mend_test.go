package export

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/tree"
)

// TestMendRefuses: what is not damaged takes no contents, nor does a name that
// says nothing, or who may not write.
func TestMendRefuses(t *testing.T) {
	m := newMaster(t, JournalOptions{})
	dir := mendDir{m.j}
	ctx := t.Context()
	a, h, err := m.t.Create(ctx, nil, kml.RootOID, "f", unix.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	good := feed.Mend{OID: a.OID, Version: kml.Position(a.DataVersion), Mtime: a.Mtime}.String()
	for _, c := range []struct {
		name  string
		cred  *tree.Cred
		flags int
		want  error
	}{
		{good, nil, unix.O_WRONLY, unix.ENOENT},
		{feed.Mend{OID: 77 << 44}.String(), nil, unix.O_WRONLY, unix.ENOENT},
		{good, nil, unix.O_RDONLY, unix.EACCES},
		{good + "0", nil, unix.O_WRONLY, unix.EINVAL},
		{"x", nil, unix.O_WRONLY, unix.EINVAL},
		{good, &tree.Cred{UID: 12345, GID: 12345}, unix.O_WRONLY, unix.EACCES},
	} {
		if _, _, err := dir.Create(ctx, c.cred, c.name, c.flags); !errors.Is(err, c.want) {
			t.Errorf("%q, flags %#x: %v, want %v", c.name, c.flags, err, c.want)
		}
	}
	if _, err := dir.Lookup(ctx, nil, good); !errors.Is(err, unix.ENOENT) {
		t.Error(err)
	}
}
