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

	"github.com/spf13/cobra"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

func (a *app) statusCommand() *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "status [WHERE]",
		Short: "tell how a fileset is",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.status(cmd.Context(), first(args), asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	return c
}

func (a *app) status(ctx context.Context, where string, asJSON bool) error {
	text, err := a.stateText(ctx, where, "status", func(b *bytes.Buffer, p place) error { return folderStatus(b, p.folder) })
	if err != nil {
		return err
	}
	if asJSON {
		return printJSONLines(a, string(text))
	}
	_, err = a.env.Stdout.Write(text)
	return err
}

// printJSONLines prints "key: value" lines as one JSON object. A key that comes
// again has a list.
func printJSONLines(a *app, text string) error {
	m := map[string]any{}
	for _, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		k, v, ok := strings.Cut(line, ": ")
		if !ok {
			continue
		}
		switch old := m[k].(type) {
		case nil:
			m[k] = v
		case string:
			m[k] = []string{old, v}
		case []string:
			m[k] = append(old, v)
		}
	}
	e := json.NewEncoder(a.env.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(m)
}

// readFileset reads what fileset.json in dir says, beside whoever has it open.
func readFileset(dir string) (tree.Fileset, error) {
	var f tree.Fileset
	path := filepath.Join(dir, stateDir, "fileset.json")
	b, err := os.ReadFile(path)
	if err != nil {
		return f, pathProblem(path, err)
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return f, &problem{Thing: path, Err: err}
	}
	return f, nil
}

// folderSocket is where the master of the fileset in dir listens, if there is
// one.
func folderSocket(dir string, getenv func(string) string) (string, error) {
	f, err := readFileset(dir)
	if err != nil {
		return "", err
	}
	return defaultSocket(dir, f.UUID, getenv)
}

// folderStatus tells what the folder of a fileset that nobody serves says.
func folderStatus(b *bytes.Buffer, dir string) error {
	f, err := readFileset(dir)
	if err != nil {
		return err
	}
	line := func(key string, value any) { fmt.Fprintf(b, "%s: %v\n", key, value) }
	line("fileset", f.UUID)
	line("role", f.Role)
	line("dir", strconv.Quote(dir))
	line("served", "no")
	log, err := kml.Open(filepath.Join(dir, stateDir, "kml"), kml.Options{ReadOnly: true})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer log.Close()
	line("first", log.First())
	line("end", log.End())
	line("durable", log.Durable())
	line("log_bytes", log.Size())
	return nil
}
