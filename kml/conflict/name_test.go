package conflict

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestCopyName(t *testing.T) {
	when := time.Date(2026, 11, 21, 6, 42, 27, 0, time.FixedZone("", 3600))
	long := strings.Repeat("é", 127) // 254 bytes
	for _, c := range []struct {
		name, host string
		n          int
		want       string
	}{
		{"report.txt", "anna", 1, "report (conflict, anna, 2026-11-21 05.42.27).txt"},
		{"report.txt", "anna", 2, "report (conflict, anna, 2026-11-21 05.42.27 2).txt"},
		{"Makefile", "a/b", 1, "Makefile (conflict, a-b, 2026-11-21 05.42.27)"},
		{".bashrc", "a", 1, ".bashrc (conflict, a, 2026-11-21 05.42.27)"},
		{"a.tar.gz", "a", 1, "a.tar (conflict, a, 2026-11-21 05.42.27).gz"},
		{"Mr. Smith", "a", 1, "Mr. Smith (conflict, a, 2026-11-21 05.42.27)"},
		{"report (conflict, bob, 2025-01-01 00.00.00).txt", "anna", 1, "report (conflict, anna, 2026-11-21 05.42.27).txt"},
		{"Makefile (conflict, bob, 2025-01-01 00.00.00 12)", "anna", 1, "Makefile (conflict, anna, 2026-11-21 05.42.27)"},
		{"a (draft).txt", "anna", 1, "a (draft) (conflict, anna, 2026-11-21 05.42.27).txt"},
		{"x.y", "a(b) c)", 1, "x (conflict, a(b- c-, 2026-11-21 05.42.27).y"},
		{long, "anna", 1, strings.Repeat("é", 108) + " (conflict, anna, 2026-11-21 05.42.27)"},
		{long[:200] + ".docx", "anna", 1, strings.Repeat("é", 100) + " (conflict, anna, 2026-11-21 05.42.27).docx"},
		{strings.Repeat("\xff", 255), "anna", 1, strings.Repeat("\xff", 217) + " (conflict, anna, 2026-11-21 05.42.27)"},
	} {
		got := CopyName(c.name, c.host, when, c.n)
		if got != c.want {
			t.Errorf("%q at %q: %q (%d bytes), want %q (%d)", c.name, c.host, got, len(got), c.want, len(c.want))
		}
		if again := CopyName(got, c.host, when, c.n); again != got {
			t.Errorf("a copy of %q is %q: nested", got, again)
		}
		if !IsCopy(got) {
			t.Errorf("%q is not known as a copy", got)
		}
	}
	if IsCopy("a (draft).txt") || IsCopy("a.txt") {
		t.Error("a file of a user's is taken for a copy")
	}
}

func FuzzCopyName(f *testing.F) {
	f.Add("a.txt", "host", 3)
	f.Add(strings.Repeat("日", 85), strings.Repeat("本", 40), 1)
	f.Add("a (conflict, b, c) (conflict, d, e).x", ")", 0)
	f.Fuzz(func(t *testing.T, name, host string, n int) {
		if name == "" || len(name) > maxName || strings.ContainsAny(name, "/\x00") {
			t.Skip()
		}
		got := CopyName(name, host, time.Unix(1e9, 0), n)
		if len(got) > maxName || got == "" || strings.ContainsAny(got, "/\x00") {
			t.Errorf("%q", got)
		}
		if utf8.ValidString(name) && utf8.ValidString(host) && !utf8.ValidString(got) {
			t.Errorf("%q of %q is cut within a letter", got, name)
		}
		if again := CopyName(got, host, time.Unix(1e9, 0), n); again != got {
			t.Errorf("%q, of it %q: nested", got, again)
		}
	})
}
