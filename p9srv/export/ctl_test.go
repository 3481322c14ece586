package export

import (
	"context"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// TestCtl obeys lines, however they are cut into writes, and refuses the rest.
func TestCtl(t *testing.T) {
	m := newMaster(t, JournalOptions{})
	ctx := context.Background()
	h, err := m.j.openCtl(ctx, nil, unix.O_WRONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	write := func(s string) error { _, err := h.WriteAt(ctx, []byte(s), 0); return err }
	for _, s := range []string{"mark one\nma", "rk two\n", "scan\nsync\ntruncate 0 0s\n"} {
		if err := write(s); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"\n", "mark\n", "marks x\n", "accept x\n", "truncate 1\n", "truncate -1 1s\n", "truncate 1 -1s\n", "accept 0:1 x\n"} {
		if err := write(s); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%q: %v, want EINVAL", s, err)
		}
	}
	if err := write("accept 1:77\n"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("of what is not damaged: %v", err)
	}
	if err := write(string(make([]byte, maxCtl+1))); !errors.Is(err, unix.EFBIG) {
		t.Errorf("too long a line: %v", err)
	}
	var notes []string
	r, err := m.t.Log().ReaderAfter(0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for {
		rec, err := r.TryNext()
		if err != nil {
			break
		}
		if rec.Op == kml.OpMark && rec.Mark == kml.MarkNote {
			notes = append(notes, rec.Name)
		}
	}
	if len(notes) != 2 || notes[0] != "one" || notes[1] != "two" {
		t.Errorf("notes %q", notes)
	}
	if _, err := m.j.openCtl(ctx, nil, unix.O_RDONLY); !errors.Is(err, unix.EACCES) {
		t.Errorf("reading: %v", err)
	}
}
