package tree

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mezzofs/mezzo/kml/glob"
)

func TestDigestEntryText(t *testing.T) {
	for _, e := range []DigestEntry{
		{},
		{Name: "a b\n\"c\xff", Mode: 0o100644, UID: 1, GID: 2, Nlink: 3, Rdev: 4, Size: 5, Mtime: -6, Xattrs: Sum{7}, Content: Sum{8},
			OID: 9, Version: 10, DataVersion: 11, Ref: 12, Busy: true},
		{Name: "link", Mode: 0o120777, Target: "to \"here\""},
	} {
		line := string(e.AppendText(nil))
		got, err := ParseDigestEntry(line)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if d := cmp.Diff(e, *got); d != "" {
			t.Errorf("%s: %s", line, d)
		}
		if got.Sum() != e.Sum() {
			t.Errorf("%s: another hash", line)
		}
	}
}

func FuzzDigestEntry(f *testing.F) {
	e := DigestEntry{Name: "a", Target: "b", Mode: 0o120777, Xattrs: Sum{1}}
	f.Add(string(e.AppendText(nil)))
	f.Fuzz(func(t *testing.T, line string) {
		e, err := ParseDigestEntry(line)
		if err != nil {
			return
		}
		again, err := ParseDigestEntry(string(e.AppendText(nil)))
		if err != nil || *again != *e {
			t.Fatalf("%q: %v, %+v is not %+v", line, err, again, e)
		}
	})
}

func TestDigestOptionsText(t *testing.T) {
	g := func(s string) glob.Glob {
		x, err := glob.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	for _, o := range []DigestOptions{
		{},
		{UserXattrs: true},
		{Choose: &Choice{Only: []glob.Glob{g("*.go"), g("a b\"c")}, Exclude: []glob.Glob{g("x/**")}, MaxSize: 77}, UserXattrs: true},
	} {
		got, err := ParseDigestOptions(o.String())
		if err != nil || got.String() != o.String() {
			t.Errorf("%q: %q, %v", o, got, err)
		}
	}
	for _, bad := range []string{"only", "only x", "max", "max x", "xattrs all", "more", `only "[" exclude`} {
		if _, err := ParseDigestOptions(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
