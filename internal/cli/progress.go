package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/schollz/progressbar/v3"
)

// progress shows how far a long operation is, on a terminal; elsewhere it is
// silent.
type progress struct{ bar *progressbar.ProgressBar }

// newProgress counts things of an unknown number.
func newProgress(w io.Writer, what string) *progress {
	if !terminal(w) {
		return &progress{}
	}
	return &progress{progressbar.NewOptions64(-1,
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetDescription(what),
		progressbar.OptionShowCount(),
		progressbar.OptionShowIts(),
		progressbar.OptionSetItsString("files"),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
		progressbar.OptionSetElapsedTime(false),
	)}
}

// set says how many there are so far.
func (p *progress) set(n int64) {
	if p.bar != nil {
		p.bar.Set64(n) // an error of the terminal is nobody's concern
	}
}

// describe says what is going on.
func (p *progress) describe(what string) {
	if p.bar != nil {
		p.bar.Describe(what)
	}
}

// end clears the line.
func (p *progress) end() {
	if p.bar != nil {
		p.bar.Finish()
	}
}

// plural is n things.
func plural(n int64, thing string) string {
	if n == 1 {
		return fmt.Sprintf("1 %s", thing)
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
