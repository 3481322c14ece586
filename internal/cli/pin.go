package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/mezzofs/mezzo/cachefs"
)

func (a *app) pinCommand() *cobra.Command {
	prio, wait := 0, false
	c := &cobra.Command{
		Use:   "pin PATH...",
		Short: "keep files in a mount's cache",
		Args:  someArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.pin(cmd.Context(), args, prio, wait)
		},
	}
	c.Flags().IntVar(&prio, "priority", 0, "fetch what has a higher `NUMBER` first")
	c.Flags().BoolVar(&wait, "wait", false, "wait until everything that is pinned is there")
	return c
}

func (a *app) unpinCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "unpin PATH...",
		Short: "no longer keep files in a mount's cache",
		Args:  someArgs,
		RunE:  func(cmd *cobra.Command, args []string) error { return a.unpin(cmd.Context(), args) },
	}
}

func (a *app) pinsCommand() *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "pins [MNT]",
		Short: "tell what is pinned in a mount, and what is missing of it",
		RunE:  func(cmd *cobra.Command, args []string) error { return a.showPins(cmd.Context(), first(args), asJSON) },
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	return c
}

func someArgs(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usagef("takes 1 argument or more, not 0")
	}
	return nil
}

// pinned is a path or pattern in a mount.
type pinned struct{ mount, pattern string }

// pinOf makes a pattern from the root of the mount of what stands on a command
// line: a path that is there, or else a pattern below the folder before its first
// part with a pattern's letters; one without a slash is for names in all folders
// below.
func pinOf(arg string) (pinned, error) {
	abs, err := filepath.Abs(arg)
	if err != nil {
		return pinned{}, err
	}
	dir, rest := abs, ""
	if _, err := os.Lstat(abs); err != nil {
		if !strings.ContainsAny(arg, "*?[") {
			return pinned{}, pathProblem(arg, err)
		}
		for strings.ContainsAny(dir, "*?[") {
			if _, err := os.Lstat(dir); err == nil {
				break
			}
			rest = filepath.Join(filepath.Base(dir), rest)
			dir = filepath.Dir(dir)
		}
		if !strings.Contains(arg, "/") {
			rest = "**/" + rest
		}
	}
	p, err := climb(arg, dir)
	if err != nil {
		return pinned{}, err
	}
	if p.mount == "" {
		return pinned{}, &problem{Thing: arg, Err: errors.New("is in no mount with a cache"), Remedy: "name a path in a mount that mezzo mount made"}
	}
	rel, err := filepath.Rel(p.mount, dir)
	if err != nil {
		return pinned{}, err
	}
	at := "/"
	if rel != "." {
		at += cachefs.EscapePattern(rel)
	}
	if rest != "" {
		at = strings.TrimSuffix(at, "/") + "/" + rest
	}
	return pinned{p.mount, at}, nil
}

func (a *app) pin(ctx context.Context, args []string, prio int, wait bool) error {
	var pins []pinned
	for _, arg := range args {
		p, err := pinOf(arg)
		if err != nil {
			return err
		}
		pins = append(pins, p)
	}
	for _, p := range pins {
		if err := a.control(ctx, p.mount, fmt.Sprintf("pin %d %q", prio, p.pattern)); err != nil {
			return err
		}
		l, err := readPins(ctx, p.mount)
		if err != nil {
			return err
		}
		for _, s := range l.Pins {
			if s.Pattern == p.pattern {
				a.out("%s: %s\n", s.Pattern, s.text())
			}
		}
	}
	if !wait {
		return nil
	}
	for mnt := range mountsOf(pins) {
		if err := a.awaitPins(ctx, mnt); err != nil {
			return err
		}
	}
	return nil
}

func mountsOf(pins []pinned) map[string]bool {
	m := map[string]bool{}
	for _, p := range pins {
		m[p.mount] = true
	}
	return m
}

// awaitPins shows how much is missing until nothing is.
func (a *app) awaitPins(ctx context.Context, mnt string) error {
	bar := newProgress(a.env.Stderr, "pinned")
	defer bar.end()
	over := make(chan error, 1)
	go func() { over <- a.control(ctx, mnt, "hoard") }() // ends with the program at the latest
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-over:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		l, err := readPins(ctx, mnt)
		if err != nil {
			return err
		}
		var files, left, bytes int64
		for _, s := range l.Pins {
			files, left, bytes = files+s.Files, left+s.MissingFiles, bytes+s.MissingBytes
		}
		bar.set(files - left)
		bar.describe(fmt.Sprintf("pinned: %s of %s to fetch", sizeText(bytes), plural(left, "file")))
	}
}

func (a *app) unpin(ctx context.Context, args []string) error {
	for _, arg := range args {
		mnt, err := locate(".")
		p, perr := pinOf(arg)
		switch {
		case perr == nil:
			mnt.mount = p.mount
		case err != nil || mnt.mount == "":
			return perr
		}
		l, err := readPins(ctx, mnt.mount)
		if err != nil {
			return err
		}
		found := ""
		for _, s := range l.Pins {
			if s.Pattern == p.pattern || s.Pattern == arg && found == "" {
				found = s.Pattern
			}
		}
		if found == "" {
			return &problem{Thing: arg, Err: errors.New("is not pinned"), Remedy: "mezzo pins shows what is"}
		}
		if err := a.control(ctx, mnt.mount, fmt.Sprintf("unpin %q", found)); err != nil {
			return err
		}
	}
	return nil
}

// pinList is what the file pins of a mount says.
type pinList struct {
	State   string       `json:"state"`
	Pins    []pinLine    `json:"pins"`
	Missing []missedFile `json:"missing"`
}

type pinLine struct {
	Pattern      string `json:"pattern"`
	Priority     int64  `json:"priority"`
	Files        int64  `json:"files"`
	Bytes        int64  `json:"bytes"`
	MissingFiles int64  `json:"missing_files"`
	MissingBytes int64  `json:"missing_bytes"`
	Unlisted     int64  `json:"unlisted"`
}

type missedFile struct {
	Path  string `json:"path"`
	Bytes int64  `json:"bytes"`
}

// text says how much it is, and how much of it is missing.
func (s *pinLine) text() string {
	t := fmt.Sprintf("%s, %s", plural(s.Files, "file"), sizeText(s.Bytes))
	switch {
	case s.Unlisted > 0:
		t += fmt.Sprintf("; %s not seen yet", plural(s.Unlisted, "folder"))
	case s.MissingFiles > 0:
		t += fmt.Sprintf("; %s, %s to fetch", plural(s.MissingFiles, "file"), sizeText(s.MissingBytes))
	default:
		t += "; all here"
	}
	return t
}

// sizeText is a number of bytes for a person.
func sizeText(n int64) string {
	units := []string{"bytes", "KiB", "MiB", "GiB", "TiB"}
	v, i := float64(n), 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

func readPins(ctx context.Context, mnt string) (*pinList, error) {
	var b bytes.Buffer
	if err := readWhole(ctx, mountedExtension{mnt}, "pins", &b); err != nil {
		if errors.Is(err, syscall.ENOENT) {
			return nil, &problem{Thing: mnt, Err: errors.New("is no mount with a cache"), Remedy: "name a mount that mezzo mount made"}
		}
		return nil, pathProblem(mnt, err)
	}
	return parsePins(b.String())
}

func parsePins(text string) (*pinList, error) {
	l := &pinList{Pins: []pinLine{}, Missing: []missedFile{}}
	for _, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		key, value, _ := strings.Cut(line, ": ")
		var err error
		switch key {
		case "state":
			l.State = value
		case "pin":
			var s pinLine
			if s, err = parsePinLine(value); err == nil {
				l.Pins = append(l.Pins, s)
			}
		case "missing":
			var m missedFile
			var rest string
			if m.Path, rest, err = cutQuoted(value); err == nil {
				m.Bytes, err = strconv.ParseInt(rest, 10, 64)
				l.Missing = append(l.Missing, m)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%s/pins: %q: %w", stateDir, line, err)
		}
	}
	return l, nil
}

func parsePinLine(value string) (s pinLine, err error) {
	prio, rest, _ := strings.Cut(value, " ")
	if s.Priority, err = strconv.ParseInt(prio, 10, 64); err != nil {
		return s, err
	}
	if s.Pattern, rest, err = cutQuoted(rest); err != nil {
		return s, err
	}
	f := strings.Fields(rest)
	for i := 0; i+1 < len(f); i += 2 {
		to := map[string]*int64{"files": &s.Files, "bytes": &s.Bytes, "missing_files": &s.MissingFiles, "missing_bytes": &s.MissingBytes, "unlisted": &s.Unlisted}[f[i]]
		if to == nil {
			continue // of a newer mount
		}
		if *to, err = strconv.ParseInt(f[i+1], 10, 64); err != nil {
			return s, err
		}
	}
	return s, nil
}

// cutQuoted takes a quoted word, and the space behind it, off a line.
func cutQuoted(s string) (word, rest string, err error) {
	q, err := strconv.QuotedPrefix(s)
	if err != nil {
		return "", s, err
	}
	word, err = strconv.Unquote(q)
	return word, strings.TrimPrefix(s[len(q):], " "), err
}

func (a *app) showPins(ctx context.Context, where string, asJSON bool) error {
	p, err := locate(where)
	if err != nil {
		return err
	}
	if p.mount == "" {
		return &problem{Thing: p.String(), Err: errors.New("is no mount with a cache"), Remedy: "name a mount that mezzo mount made"}
	}
	l, err := readPins(ctx, p.mount)
	if err != nil {
		return err
	}
	if asJSON {
		e := json.NewEncoder(a.env.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(l)
	}
	for _, s := range l.Pins {
		a.out("%d %s: %s\n", s.Priority, s.Pattern, s.text())
	}
	if len(l.Pins) > 0 {
		a.out("%s\n", l.State)
	}
	return nil
}

// tellMissing says what is pinned and not here.
func (a *app) tellMissing(ctx context.Context, where string) error {
	p, err := locate(where)
	if err != nil {
		return err
	}
	l, err := readPins(ctx, p.mount)
	if err != nil {
		return err
	}
	const most = 20
	for i, m := range l.Missing {
		if i == most {
			a.out("and others; mezzo pins --json lists them\n")
			break
		}
		a.out("pinned and not here: %s (%s)\n", m.Path, sizeText(m.Bytes))
	}
	for _, s := range l.Pins {
		if s.Unlisted > 0 {
			a.out("pinned and not seen yet: %s in %s\n", plural(s.Unlisted, "folder"), s.Pattern)
		}
	}
	return nil
}
