package cli

import (
	"testing"
	"time"

	"github.com/hugelgupf/p9/p9"
)

func TestParseMode(t *testing.T) {
	mask := umask()
	for _, tt := range []struct {
		change string
		old    p9.FileMode
		folder bool
		want   p9.FileMode
	}{
		{"644", 0o777, false, 0o644},
		{"04755", 0, false, 0o4755},
		{"u+x", 0o644, false, 0o744},
		{"go-rwx", 0o777, false, 0o700},
		{"a=r", 0o6777, false, 0o6444},
		{"u=rw,g=r,o=", 0o777, false, 0o640},
		{"+x", 0o644, false, 0o644 | 0o111&^mask},
		{"a+X", 0o644, false, 0o644},
		{"a+X", 0o644, true, 0o755},
		{"a+X", 0o744, false, 0o755},
		{"u+s", 0o755, false, 0o4755},
		{"g+s", 0o755, true, 0o2755},
		{"+t", 0o777, true, 0o1777},
		{"ug-s", 0o6755, false, 0o755},
	} {
		f, err := parseMode(tt.change)
		if err != nil {
			t.Errorf("%s: %v", tt.change, err)
			continue
		}
		if got := f(tt.old, tt.folder); got != tt.want {
			t.Errorf("%s of %o is %o, want %o", tt.change, tt.old, got, tt.want)
		}
	}
	for _, bad := range []string{"", "8", "17777", "rwx", "u+z", "x+r", "u+r,", "u"} {
		if _, err := parseMode(bad); err == nil {
			t.Errorf("%q was taken for a mode", bad)
		}
	}
}

func TestModeText(t *testing.T) {
	for mode, want := range map[p9.FileMode]string{
		0o100644: "-rw-r--r--", 0o040755: "drwxr-xr-x", 0o120777: "lrwxrwxrwx", 0o010600: "prw-------",
		0o104755: "-rwsr-xr-x", 0o102644: "-rw-r-Sr--", 0o041777: "drwxrwxrwt", 0o041776: "drwxrwxrwT",
		0o020620: "crw--w----", 0o060660: "brw-rw----", 0o140755: "srwxr-xr-x", 0o000644: "?rw-r--r--",
	} {
		if got := modeText(mode); got != want {
			t.Errorf("%o is %s, want %s", mode, got, want)
		}
	}
}

func TestLsTime(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for want, at := range map[string]time.Time{
		"Nov 21 11:59": now.Add(-time.Minute), "Jan  2  1970": time.Unix(86400, 0).UTC(), "Nov 22  2026": now.Add(24 * time.Hour),
	} {
		if got := lsTime(at, now); got != want {
			t.Errorf("%v is %q, want %q", at, got, want)
		}
	}
}

// TestShownNames has no name give a terminal commands.
func TestShownNames(t *testing.T) {
	for name, want := range map[string]string{"a b": "a b", "\x1b[2J": "?[2J", "n\nl": "n?l", "\xff": "?", "ä€": "ä€", "\u202e": "?"} {
		if got := shown(name); got != want {
			t.Errorf("%q is shown as %q, want %q", name, got, want)
		}
	}
}
