package cachefs

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// Note is something a person should know: a change that the master refused.
type Note struct {
	Time time.Time
	Text string
}

func (n Note) String() string {
	return n.Time.UTC().Format(time.RFC3339) + " " + strings.ReplaceAll(n.Text, "\n", " ")
}

const maxNotes = 100

// notesPath is where notes outlive the process: Note.String, a line each,
// oldest first. Opening leaves the last maxNotes of them.
func (c *Client) notesPath() string { return c.cache.State().Path("notes") }

// note tells a person, in the log and in status, also after a restart.
func (c *Client) note(format string, args ...any) {
	n := Note{c.o.Now(), fmt.Sprintf(format, args...)}
	c.log.Warn("a change made here was refused", "err", n.Text)
	c.mu.Lock()
	if len(c.notes) == maxNotes {
		c.notes = c.notes[1:]
	}
	c.notes = append(c.notes, n)
	c.mu.Unlock()
	if err := appendLine(c.notesPath(), n.String()); err != nil {
		c.log.Warn("what was refused is not kept over a restart", "err", err)
	}
}

func appendLine(path, line string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line + "\n")
	return errors.Join(err, f.Close())
}

// loadNotes reads notes and leaves the last maxNotes in the file. A line that a
// killed process did not finish, and any other that is none, is passed over.
func loadNotes(path string) ([]Note, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var notes []Note
	whole := true
	for line := range strings.Lines(string(b)) {
		text, ended := strings.CutSuffix(line, "\n")
		at, what, _ := strings.Cut(text, " ")
		t, err := time.Parse(time.RFC3339, at)
		if !ended || err != nil {
			whole = false
			continue
		}
		notes = append(notes, Note{t, what})
	}
	if len(notes) <= maxNotes && whole {
		return notes, nil
	}
	notes = notes[max(0, len(notes)-maxNotes):]
	var keep strings.Builder
	for _, n := range notes {
		fmt.Fprintln(&keep, n)
	}
	if err := os.WriteFile(path+".new", []byte(keep.String()), 0o600); err != nil {
		return nil, err
	}
	return notes, os.Rename(path+".new", path)
}
