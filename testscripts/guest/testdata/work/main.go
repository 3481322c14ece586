// Command work does to a mounted folder what programs do to file systems, and
// says for each kind of work whether it went as Linux promises:
//
//	work [-second DIR2] [-full DIR] [-owner UID] [-skip NAME,...] [-only NAME,...] DIR
//
// DIR is an empty folder that everybody may write to, DIR2 the same folder by
// another mount, -full a folder with the entries e0 to e9999, UID who owns what
// user 1000 makes (1000 unless told). Each line of output is "ok NAME",
// "skip NAME" or "FAIL NAME: why". The exit code is 1 if something failed.
//
// As "work do ACTION ARG..." it is its own second process.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// patience is what one case may take.
const patience = 40 * time.Second

// env is where a case works.
type env struct {
	dir    string // the case's own, empty folder
	second string // the same by the other mount; empty without one
	full   string
	owner  uint32
	base   string // what dir is in
}

func (e *env) path(name string) string  { return filepath.Join(e.dir, name) }
func (e *env) other(name string) string { return filepath.Join(e.second, name) }

// skipped is a case that has nothing to work on.
var errSkip = errors.New("skip")

type testCase struct {
	name string
	run  func(e *env) error
}

var cases = slices.Concat(fileCases, nameCases, attrCases, shareCases, userCases, lastCases)

func main() {
	syscall.Umask(0)
	if len(os.Args) > 2 && os.Args[1] == "do" {
		if err := act(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	second := flag.String("second", "", "the folder by another mount")
	full := flag.String("full", "", "a folder with 10,000 entries")
	owner := flag.Uint("owner", 1000, "who owns what user 1000 makes")
	skip := flag.String("skip", "", "cases not to run")
	only := flag.String("only", "", "cases to run")
	list := flag.Bool("list", false, "only name the cases")
	flag.Parse()
	if *list {
		for _, c := range cases {
			fmt.Println(c.name)
		}
		return
	}
	failed := false
	for _, c := range cases {
		if in(*skip, c.name) || *only != "" && !in(*only, c.name) {
			fmt.Println("skip", c.name)
			continue
		}
		e := &env{dir: filepath.Join(flag.Arg(0), c.name), full: *full, owner: uint32(*owner), base: flag.Arg(0)}
		if *second != "" {
			e.second = filepath.Join(*second, c.name)
		}
		begun := time.Now()
		err := bounded(c, e)
		switch {
		case errors.Is(err, errSkip):
			fmt.Println("skip", c.name)
		case err != nil:
			failed = true
			fmt.Printf("FAIL %s: %s\n", c.name, strings.ReplaceAll(err.Error(), "\n", " | "))
		default:
			fmt.Println("ok", c.name, time.Since(begun).Milliseconds())
		}
	}
	if failed {
		os.Exit(1)
	}
}

func in(list, name string) bool { return slices.Contains(strings.Split(list, ","), name) }

func bounded(c testCase, e *env) error {
	if err := os.Mkdir(e.dir, 0o755); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- c.run(e) }()
	select {
	case err := <-done:
		return err
	case <-time.After(patience):
		return fmt.Errorf("not done after %v", patience)
	}
}

// want is an error when got is not as expected.
func want[T comparable](what string, got, expected T) error {
	if got != expected {
		return fmt.Errorf("%s is %v, not %v", what, got, expected)
	}
	return nil
}

// refused is an error unless err is the one expected.
func refused(what string, err, expected error) error {
	if !errors.Is(err, expected) {
		return fmt.Errorf("%s: %v, not %v", what, err, expected)
	}
	return nil
}

// first is the first error of a list that was computed in order.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// put writes a file.
func put(path, text string) error { return os.WriteFile(path, []byte(text), 0o644) }

// holds wants a file's contents to be text.
func holds(path, text string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if string(b) != text {
		if len(b) > 60 {
			b = append(b[:60], "..."...)
		}
		return fmt.Errorf("%s holds %q, not %q", filepath.Base(path), b, text[:min(60, len(text))])
	}
	return nil
}
