package tree

import (
	"errors"
	"os"
	"syscall"
	"testing"

	"github.com/mezzofs/mezzo/kml"
)

// TestPolicy sets a policy, which is in the log and outlives the tree; what was
// interrupted is done at the next start.
func TestPolicy(t *testing.T) {
	dir := t.TempDir()
	if err := Init(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	open := func() *Tree {
		t.Helper()
		tr, err := Open(dir, Options{NoWatch: true})
		if err != nil {
			t.Fatal(err)
		}
		return tr
	}
	tr := open()
	fine := func([]byte) error { return nil }
	if err := tr.SetPolicy(t.Context(), nil, []byte("x"), func([]byte) error { return errors.New("no policy") }); !errors.Is(err, syscall.EINVAL) || tr.Policy() != nil {
		t.Errorf("%v, then %q", err, tr.Policy())
	}
	if err := tr.SetPolicy(t.Context(), nil, []byte("* newest\n"), fine); err != nil {
		t.Fatal(err)
	}
	if end, durable := tr.Log().End(), tr.Log().Durable(); durable < end-1 {
		t.Errorf("durable up to %v of %v", durable, end)
	}
	marks := func() (texts []string) {
		t.Helper()
		r, err := tr.Log().ReaderAfter(0)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for end := tr.Log().End(); ; {
			rec, err := r.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if rec.Op == kml.OpMark && rec.Mark == kml.MarkPolicy {
				texts = append(texts, string(rec.Value))
			}
			if rec.Pos >= end {
				return texts
			}
		}
	}
	if got := marks(); len(got) != 1 || got[0] != "* newest\n" {
		t.Errorf("%q", got)
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	tr = open()
	if got := string(tr.Policy()); got != "* newest\n" {
		t.Errorf("%q", got)
	}
	path := tr.state.Path("policy.new")
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("* manual\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tr = open()
	if got := marks(); string(tr.Policy()) != "* manual\n" || len(got) != 2 || got[1] != "* manual\n" {
		t.Errorf("%q, %q", tr.Policy(), got)
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error("it is still to be done")
	}
}
