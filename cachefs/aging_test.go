package cachefs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mezzofs/mezzo/kml"
)

// TestAging: what comes and goes within the time is never sent, what stays is,
// in order, and what somebody waits for is at once.
func TestAging(t *testing.T) {
	m := newMaster(t)
	ctx := ctxOf(t)
	o := optionsOf(t.TempDir(), m.sock)
	o.Aging = time.Hour
	c, err := clientWith(t, o)
	must(t, err)
	_, err = names(ctx, c, kml.RootOID)
	must(t, err)
	before := ownRecords(t, m)
	work := func() {
		t.Helper()
		for i := range 20 {
			tmp := fmt.Sprint("tmp", i)
			must(t, writeFile(ctx, c, tmp, "short-lived"))
			must(t, c.Unlink(ctx, nil, kml.RootOID, tmp))
			must(t, writeFile(ctx, c, "kept", fmt.Sprint("version ", i)))
		}
	}
	work()
	if n := ownRecords(t, m) - before; n > 0 {
		t.Errorf("%d records were sent at once", n)
	}
	if s := c.Status(); s.Aging != time.Hour || s.Unsent == 0 || s.State != Connected {
		t.Errorf("%+v", s)
	}
	// Old enough now.
	must(t, c.SetAging(time.Millisecond))
	until(t, "kept", func() bool {
		b, err := os.ReadFile(filepath.Join(m.dir, "kept"))
		return err == nil && string(b) == "version 19"
	})
	if n := ownRecords(t, m) - before; n > 4 {
		t.Errorf("%d records for one file", n)
	}
	// One at a time gets old, too.
	must(t, c.SetAging(300*time.Millisecond))
	for i := range 3 {
		must(t, writeFile(ctx, c, fmt.Sprint("single", i), "x"))
		until(t, "single", func() bool {
			_, err := os.Stat(filepath.Join(m.dir, fmt.Sprint("single", i)))
			return err == nil
		})
	}
	must(t, c.SetAging(time.Hour))
	must(t, c.Sync(ctx))
	before = ownRecords(t, m)
	work()
	_, h, err := c.Create(ctx, nil, kml.RootOID, "synced", os.O_WRONLY, 0o644)
	must(t, err)
	_, err = h.WriteAt(ctx, []byte("now"), 0)
	must(t, err)
	must(t, h.Fsync(ctx, false))
	if b, err := os.ReadFile(filepath.Join(m.dir, "synced")); string(b) != "now" || err != nil {
		t.Error(string(b), err)
	}
	must(t, h.Close())
	if n := ownRecords(t, m) - before; n > 5 {
		t.Errorf("%d records for two files", n)
	}
	must(t, writeFile(ctx, c, "last", "x"))
	if _, err := os.Stat(filepath.Join(m.dir, "last")); !errors.Is(err, os.ErrNotExist) {
		t.Error("sent at once:", err)
	}
	must(t, c.Sync(ctx))
	equal(t, m.tree, c)
	once(t, m)
}

// ownRecords counts the records of clients in the master's log.
func ownRecords(t *testing.T, m *testMaster) int {
	t.Helper()
	r, err := m.tree.Log().ReaderAfter(0)
	must(t, err)
	defer r.Close()
	for n := 0; ; {
		rec, err := r.TryNext()
		if err != nil {
			return n
		}
		if rec.Origin.Seq != 0 {
			n++
		}
	}
}
