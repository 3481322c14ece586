package cachefs

import (
	"context"
	"fmt"
	"syscall"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// ReplicaStatus is how a replica stands to its master.
type ReplicaStatus struct {
	Dir      string       `json:"dir"`
	Upstream string       `json:"upstream"`
	State    string       `json:"state"`
	Position kml.Position `json:"position"`
	End      kml.Position `json:"end"` // of the master's log, as last heard
	// Copying: the first copy, or a comparison with the master's tree, is going on.
	Copying bool  `json:"copying"`
	Entries int64 `json:"entries"` // of the copy, so far
	Files   int64 `json:"files"`
	Bytes   int64 `json:"bytes"` // of contents that were brought
	// Wanted objects are missing in the directory; Failed ones could not be
	// brought at the last try.
	Wanted int `json:"wanted"`
	Failed int `json:"failed"`
	// Equal: the directory is what the master's tree was when it was last heard.
	Equal    bool           `json:"equal"`
	Why      string         `json:"why,omitempty"`
	Troubles []tree.Trouble `json:"troubles,omitempty"`
	More     int64          `json:"more_troubles,omitempty"`
	Counts   tree.ReplicaCounts

	looked bool // what is wanted was told
}

// Status may be asked for at any time.
func (r *Replica) Status() ReplicaStatus {
	r.mu.Lock()
	t, state := r.tree, r.state
	s := ReplicaStatus{Dir: r.o.Dir, Upstream: r.o.Addr, State: state.String(), End: r.end, Copying: r.copying}
	if r.why != nil {
		s.Why = r.why.Error()
	}
	r.mu.Unlock()
	s.Entries, s.Files, s.Bytes = r.progress.entries.Load(), r.progress.files.Load(), r.progress.bytes.Load()
	if t != nil && !s.Copying {
		s.Position = t.Applied() // before it is asked what is wanted by then
	}
	s.Wanted, s.Failed, _ = r.want.open()
	if t != nil {
		s.Troubles, s.More = t.Troubles()
		s.Counts = t.Counts()
	}
	if t != nil {
		select {
		case <-t.Looked():
			s.looked = true
		default:
		}
	}
	s.Equal = s.looked && state == Connected && !s.Copying && s.Position >= s.End && s.Wanted == 0 && len(s.Troubles) == 0
	return s
}

// NotEqual says why a directory is not the equal of its master.
type NotEqual struct {
	Troubles []tree.Trouble
	More     int64
}

// Error names the first few.
func (e *NotEqual) Error() string {
	s := fmt.Sprintf("%d names are not what the master has", int64(len(e.Troubles))+e.More)
	for i, t := range e.Troubles {
		if i == 3 {
			return s + ", ..."
		}
		s += fmt.Sprintf("; %q: %s (%s)", t.Path, t.Err, t.Remedy)
	}
	return s
}

func (e *NotEqual) Unwrap() error { return syscall.EIO }

// WaitEqual waits until the directory is the equal of its master as it was last
// heard. When nothing is left to be done but what fails, it is a *NotEqual.
func (r *Replica) WaitEqual(ctx context.Context) error {
	for {
		r.mu.Lock()
		changed := r.changed
		var looked <-chan struct{}
		if r.tree != nil {
			looked = r.tree.Looked()
		}
		r.mu.Unlock()
		s := r.Status()
		if s.Equal {
			return nil
		}
		settled := s.looked && s.State == Connected.String() && !s.Copying && s.Position >= s.End && s.Wanted == s.Failed
		if settled && len(s.Troubles) > 0 && triedAll(s.Troubles) {
			return &NotEqual{s.Troubles, s.More}
		}
		if s.looked {
			looked = nil
		}
		select {
		case <-changed:
		case <-looked:
		case <-ctx.Done():
			return ctx.Err()
		case <-r.ctx.Done():
			return syscall.ESHUTDOWN
		}
	}
}

// triedAll reports whether each trouble was met twice at least.
func triedAll(ts []tree.Trouble) bool {
	for _, t := range ts {
		if t.Tries < 2 {
			return false
		}
	}
	return true
}
