package merge

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ErrConfig is a text of programs that cannot be read.
var ErrConfig = errors.New("not a list of merge programs")

// Program is a command and its arguments, with %base, %ours, %theirs and %out.
type Program []string

// Programs are the merge programs of a host, by name.
type Programs map[string]Program

// maxConfig is how long the file may be, in bytes.
const maxConfig = 1 << 20

// ConfigPath is where the programs of a user stand: merge.conf in the folder mezzo
// of $XDG_CONFIG_HOME, or of .config in his home.
func ConfigPath(getenv func(string) string) (string, error) {
	if dir := getenv("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "mezzo", "merge.conf"), nil
	}
	home := getenv("HOME")
	if !filepath.IsAbs(home) {
		return "", fmt.Errorf("neither XDG_CONFIG_HOME nor HOME is set: %w", ErrConfig)
	}
	return filepath.Join(home, ".config", "mezzo", "merge.conf"), nil
}

// ReadPrograms reads the file at path; one that does not exist has none.
func ReadPrograms(path string) (Programs, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxConfig {
		return nil, fmt.Errorf("%s: no regular file of at most %d bytes: %w", path, maxConfig, ErrConfig)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	p, err := ParsePrograms(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

// ParsePrograms reads the text of a file. An error names the line.
func ParsePrograms(text string) (Programs, error) {
	ps := Programs{}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, rest, ok := strings.Cut(line, "=")
		name = strings.TrimSpace(name)
		p, err := words(rest)
		switch {
		case err != nil:
		case !ok || name == "" || len(p) == 0:
			err = fmt.Errorf("say NAME = COMMAND ARGUMENT ...: %w", ErrConfig)
		case ps[name] != nil:
			err = fmt.Errorf("%q comes twice: %w", name, ErrConfig)
		case !slices.ContainsFunc(p, func(w string) bool { return strings.Contains(w, "%ours") }) ||
			!slices.ContainsFunc(p, func(w string) bool { return strings.Contains(w, "%theirs") }):
			err = fmt.Errorf("%q takes no %%ours or no %%theirs: %w", name, ErrConfig)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		ps[name] = p
	}
	return ps, nil
}

// words splits at spaces; a word may be quoted as a Go string.
func words(s string) (Program, error) {
	var p Program
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimSpace(s) {
		if s[0] == '"' || s[0] == '`' {
			q, err := strconv.QuotedPrefix(s)
			if err != nil {
				return nil, fmt.Errorf("a quote that does not end: %w", ErrConfig)
			}
			w, err := strconv.Unquote(q)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", q, ErrConfig)
			}
			p, s = append(p, w), s[len(q):]
			continue
		}
		w, rest := s, ""
		if i := strings.IndexAny(s, " \t"); i >= 0 {
			w, rest = s[:i], s[i:]
		}
		p, s = append(p, w), rest
	}
	return p, nil
}
