package cli

import (
	"bytes"
	"errors"
	"io/fs"
	"os/exec"
	"sort"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mezzofs/mezzo/man"
)

// commands are all of them, in the order help shows them.
func (a *app) commands() []*cobra.Command {
	return []*cobra.Command{
		a.upCommand(),
		a.initCommand(),
		a.serveCommand(),
		a.mountCommand(),
		a.mountPortCommand(),
		a.replicateCommand(),
		a.verifyCommand(),
		a.statusCommand(),
		a.scanCommand(),
		a.damagedCommand(),
		a.policyCommand(),
		a.offlineCommand(),
		a.onlineCommand(),
		a.syncCommand(),
		a.pinCommand(),
		a.unpinCommand(),
		a.pinsCommand(),
		a.logCommand(),
		a.kmlCommand(),
		a.nineCommand(),
		a.manCommand(),
	}
}

func (a *app) manCommand() *cobra.Command {
	source := false
	c := &cobra.Command{
		Use:   "man [PAGE]",
		Short: "show a page of the manual",
		RunE: func(cmd *cobra.Command, args []string) error {
			page := "mezzo"
			if len(args) == 1 {
				page = args[0]
			}
			return a.showPage(page, source)
		},
		ValidArgs: manPages(),
	}
	c.Flags().BoolVar(&source, "source", false, "print the page's mdoc source")
	return c
}

// manPages are the names of the pages, as mezzo-up.1.
func manPages() []string {
	names, _ := fs.Glob(man.Pages, "*") // the pattern is well formed, the only error there is
	sort.Strings(names)
	return names
}

// showPage prints a page named as mezzo-up.1, mezzo-up or up.
func (a *app) showPage(name string, source bool) error {
	file := findPage(name)
	if file == "" {
		return &problem{Thing: name, Err: errors.New("no such page"), Remedy: "there are " + strings.Join(manPages(), ", ")}
	}
	text, err := man.Pages.ReadFile(file)
	if err != nil {
		return err
	}
	if !source {
		if rendered, err := render(text); err == nil {
			text = rendered
		}
	}
	_, err = a.env.Stdout.Write(text)
	return err
}

func findPage(name string) string {
	for _, p := range manPages() {
		stem, _, _ := strings.Cut(p, ".")
		if name == p || name == stem || "mezzo-"+name == stem {
			return p
		}
	}
	return ""
}

// render lays a page out with what the system has for it.
func render(text []byte) ([]byte, error) {
	for _, tool := range [][]string{{"mandoc", "-T", "utf8"}, {"groff", "-K", "utf8", "-T", "utf8", "-m", "mdoc"}} {
		path, err := exec.LookPath(tool[0])
		if err != nil {
			continue
		}
		cmd := exec.Command(path, tool[1:]...)
		cmd.Stdin = bytes.NewReader(text)
		out, err := cmd.Output()
		if err == nil {
			return out, nil
		}
	}
	return nil, errors.New("neither mandoc nor groff is here")
}
