package cli

import (
	"bytes"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/mezzofs/mezzo/man"
)

// inMezzo1 are the commands that mezzo(1) itself documents.
var inMezzo1 = map[string]bool{"mezzo": true, "man": true, "help": true, "completion": true}

var flagWord = regexp.MustCompile(`\bFl (Fl )?([A-Za-z0-9][-A-Za-z0-9]*)`)

// pageFlags are the flags a page names, short and long ones alike.
func pageFlags(text []byte) map[string]bool {
	m := map[string]bool{}
	for _, f := range flagWord.FindAllSubmatch(text, -1) {
		m[string(f[2])] = true
	}
	return m
}

func testApp() *app {
	return &app{env: Env{Stdin: strings.NewReader(""), Stdout: new(bytes.Buffer), Stderr: new(bytes.Buffer)}}
}

func pageOf(t *testing.T, c *cobra.Command) (string, []byte) {
	t.Helper()
	for c.HasParent() && c.Parent().HasParent() {
		c = c.Parent() // a sub-command stands in its command's page
	}
	name := "mezzo-" + c.Name() + ".1"
	if inMezzo1[c.Name()] {
		name = "mezzo.1"
	}
	text, err := man.Pages.ReadFile(name)
	if err != nil {
		t.Fatalf("command %s has no page: %v", c.Name(), err)
	}
	return name, text
}

// withSubcommands is c and all commands below it.
func withSubcommands(c *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{c}
	for _, sub := range c.Commands() {
		all = append(all, withSubcommands(sub)...)
	}
	return all
}

// TestFlagsStandInPages holds commands and pages together: every flag stands
// in its command's page, and a page names no flag that is not there.
func TestFlagsStandInPages(t *testing.T) {
	root := testApp().rootCommand()
	known := map[string]map[string]bool{}
	for _, c := range withSubcommands(root) {
		name, text := pageOf(t, c)
		in := pageFlags(text)
		if known[name] == nil {
			known[name] = map[string]bool{"v": true, "verbose": true, "h": true, "help": true, "version": true}
		}
		c.NonInheritedFlags().VisitAll(func(f *pflag.Flag) {
			if !in[f.Name] {
				t.Errorf("%s does not name --%s", name, f.Name)
			}
			known[name][f.Name] = true
			if f.Shorthand != "" {
				if !in[f.Shorthand] {
					t.Errorf("%s does not name -%s", name, f.Shorthand)
				}
				known[name][f.Shorthand] = true
			}
		})
	}
	for name, flags := range known {
		text, err := man.Pages.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for f := range pageFlags(text) {
			if !flags[f] {
				t.Errorf("%s names -%s, which the command does not have", name, f)
			}
		}
	}
}

// TestPagesKnowEveryCommand wants each command in the list of mezzo(1).
func TestPagesKnowEveryCommand(t *testing.T) {
	text, err := man.Pages.ReadFile("mezzo.1")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range testApp().rootCommand().Commands() {
		if !bytes.Contains(text, []byte(".It Cm "+c.Name())) {
			t.Errorf("mezzo.1 does not list %s", c.Name())
		}
	}
}

func TestPagesLintClean(t *testing.T) {
	mandoc, err := exec.LookPath("mandoc")
	if err != nil {
		t.Skip("mandoc is not here")
	}
	for _, p := range manPages() {
		text, err := man.Pages.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(mandoc, "-Tlint", "-W", "warning")
		cmd.Stdin = bytes.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", p, err, out)
		}
	}
}

// TestPagesReferToPages wants every mezzo page that is referred to be there.
func TestPagesReferToPages(t *testing.T) {
	xr := regexp.MustCompile(`Xr (mezzo[-a-z0-9]*) ([1-9])`)
	for _, p := range manPages() {
		text, err := man.Pages.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range xr.FindAllSubmatch(text, -1) {
			page := string(m[1]) + "." + string(m[2])
			if _, err := man.Pages.Open(page); err != nil {
				t.Errorf("%s refers to %s, which is not there", p, page)
			}
		}
	}
}
