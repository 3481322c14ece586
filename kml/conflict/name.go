package conflict

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	maxName = 255
	maxExt  = 32
	maxHost = 64
	mark    = " (conflict, "
)

// CopyName is the name of a conflict copy, at most 255 bytes:
//
//	name (conflict, HOST, 2026-11-21 06.42.27).ext
//
// The time is UTC. A copy of a copy is named like one of the original. n above 1
// tells copies of the same second apart. Names are cut before the mark, not
// within a letter.
func CopyName(name, host string, t time.Time, n int) string {
	base, ext := SplitCopy(name)
	host = strings.Map(func(r rune) rune {
		if r == '/' || r == ')' || r == 0 {
			return '-'
		}
		return r
	}, host)
	m := mark + cutAt(host, maxHost) + ", " + t.UTC().Format("2006-01-02 15.04.05")
	if n > 1 {
		m += fmt.Sprintf(" %d", n)
	}
	m += ")"
	return cutAt(base, maxName-len(m)-len(ext)) + m + ext
}

// SplitCopy takes the mark of a conflict copy out of a name and parts the rest
// into the name and its ending.
func SplitCopy(name string) (base, ext string) {
	base = name
	if i := strings.LastIndexByte(name, '.'); i > 0 && len(name)-i <= maxExt && !strings.ContainsAny(name[i:], ") ") {
		base, ext = name[:i], name[i:]
	}
	for {
		i := strings.LastIndex(base, mark)
		if i <= 0 || !strings.HasSuffix(base, ")") || strings.Contains(base[i+len(mark):len(base)-1], ")") {
			return base, ext
		}
		base = base[:i]
	}
}

// IsCopy reports whether a name is that of a conflict copy.
func IsCopy(name string) bool {
	base, ext := SplitCopy(name)
	return base+ext != name
}

// cutAt is s up to n bytes, not within a letter. Bytes that are no UTF-8 are cut
// anywhere.
func cutAt(s string, n int) string {
	if len(s) <= n {
		return s
	}
	n = max(n, 0)
	for i := n; i > 0 && i > n-utf8.UTFMax; i-- {
		if utf8.RuneStart(s[i]) {
			if r, size := utf8.DecodeRuneInString(s[i:]); r != utf8.RuneError || size > 1 {
				return s[:i]
			}
			break
		}
	}
	return s[:n]
}
