package tree

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
)

// evidence is what a log told behind the place at which history ends, kept in
// evidence.json from before the cut until the directory has been held against
// it and the outcome is durable. A recovery that is itself cut short starts
// over from it.
type evidence struct {
	Version int          `json:"version"`
	After   kml.Position `json:"after"` // history ends here
	Reason  string       `json:"reason"`
	Copied  bool         `json:"copied,omitempty"`
	Suspect *Suspect     `json:"suspect,omitempty"`
	Tail    [][]byte     `json:"tail"` // records, frozen

	recs []*kml.Record
}

const (
	evidenceVersion = 1
	evidenceFile    = "evidence.json"

	reasonCrash = "machine crashed"
	reasonLost  = "the log's end was lost"
	reasonCopy  = "copied or restored"

	maxHistory = 1024 // own sites that are remembered
)

func (s *State) readEvidence() (*evidence, error) {
	b, err := os.ReadFile(s.Path(evidenceFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	e := new(evidence)
	if err := json.Unmarshal(b, e); err != nil {
		return nil, fmt.Errorf("%s: %w", evidenceFile, err)
	}
	if e.Version != evidenceVersion {
		return nil, fmt.Errorf("%s: version %d: %w", evidenceFile, e.Version, kml.ErrNewer)
	}
	for i, b := range e.Tail {
		r, _, _, err := kml.ParseRecord(b, 0)
		if err != nil {
			return nil, fmt.Errorf("%s: record %d: %w", evidenceFile, i, err)
		}
		e.recs = append(e.recs, r)
	}
	return e, nil
}

func (s *State) writeEvidence(e *evidence) error {
	for _, r := range e.recs {
		b, _, err := kml.AppendRecord(nil, r, 0)
		if err != nil {
			return err
		}
		e.Tail = append(e.Tail, b)
	}
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(s.Path(evidenceFile), b, 0o600); err != nil {
		return err
	}
	return syncDir(s.Path())
}

// settleHistory decides, before anything is read from log or index, whether
// they can be trusted to the end. After a crash of the machine they cannot:
// history ends at the last durable commit mark and a new epoch begins there.
// The fileset's copy, or its own past, begins one at the log's end.
func (t *Tree) settleHistory(indexAt kml.Position) error {
	if t.log.Epoch() == 0 {
		return nil // just made
	}
	ev, err := t.state.readEvidence()
	if err != nil {
		return err
	}
	if ev == nil {
		if ev, err = t.gatherEvidence(indexAt); ev == nil || err != nil {
			return err
		}
		if err := t.state.writeEvidence(ev); err != nil {
			return err
		}
	}
	fault.Point("tree.evidence")
	t.past = ev
	end := t.log.Durable()
	if ev.Copied && ev.Suspect == nil {
		end = max(end, t.log.End())
	}
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return err
	}
	if _, err := t.log.CutAfter(end, ev.Reason, id); err != nil {
		return err
	}
	fault.Point("tree.cut")
	t.logger.Warn("history was cut; a new epoch begins", "fileset", t.dir, "reason", ev.Reason,
		"after", end, "epoch", t.log.Epoch(), "records_behind", len(ev.recs))
	return t.state.newEpoch(t.log.Epoch(), ev.Suspect)
}

// gatherEvidence says why history must be cut; nil when it need not.
func (t *Tree) gatherEvidence(indexAt kml.Position) (*evidence, error) {
	last, err := t.state.lastRun()
	if err != nil {
		return nil, err
	}
	ev := &evidence{Version: evidenceVersion, After: t.log.Durable(), Copied: t.state.Copied}
	rep := t.log.Repaired()
	switch {
	case last != nil && last.BootID != t.opt.Boot.ID:
		ev.Reason = reasonCrash
		ev.Suspect = &Suspect{From: last.Began, To: t.opt.Boot.Since.UnixNano()}
	case t.state.Copied: // what a copy has of a log's last record says nothing
		ev.Reason, ev.After = reasonCopy, t.log.End()
		return ev, nil
	case rep.Segment != "" && !rep.Torn, indexAt > t.log.End():
		ev.Reason = reasonLost
		ev.Suspect = &Suspect{To: t.now().UnixNano()}
		if last != nil {
			ev.Suspect.From = last.Began
		}
	default:
		return nil, nil
	}
	if old := t.state.Fileset().Suspect; old != nil { // not looked at in full since
		ev.Suspect.From = min(ev.Suspect.From, old.From)
	}
	rd, err := t.log.ReaderAfter(ev.After)
	if err != nil {
		return nil, err
	}
	defer rd.Close()
	for {
		r, err := rd.TryNext()
		if err == io.EOF {
			return ev, nil
		}
		if err != nil {
			return nil, err
		}
		ev.recs = append(ev.recs, r)
	}
}

// newEpoch gives the master a fresh site for its own records and objects, so
// that no number of the history that went is used again. Own sites come at
// random from a range that clients' never reach: a copy and its original then
// do not mint the same oids either.
func (s *State) newEpoch(epoch uint16, suspect *Suspect) error {
	var b [4]byte
	var site kml.SiteID
	used := s.Fileset().OwnSites
	for site == 0 || slices.Contains(used, site) {
		if _, err := rand.Read(b[:]); err != nil {
			return err
		}
		site = ownSites + kml.SiteID(binary.LittleEndian.Uint32(b[:]))%ownSites
	}
	err := s.Update(func(f *Fileset) {
		f.OwnSites = append(f.OwnSites, f.Site)
		f.OwnSites = f.OwnSites[max(0, len(f.OwnSites)-maxHistory):]
		f.Epoch, f.Site, f.CounterReserved, f.Suspect = epoch, site, 0, suspect
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.next = 2
	s.mu.Unlock()
	return nil
}

// Clients' sites count up from 2; the master's own of later epochs are chosen
// in [ownSites, 2*ownSites).
const ownSites kml.SiteID = 1 << 18

// ownSite reports whether a site is, or was, the master's.
func (t *Tree) ownSite(id kml.SiteID) bool {
	if id == t.site {
		return true
	}
	return slices.Contains(t.state.Fileset().OwnSites, id)
}

// recoverHistory brings tree, index and log together after history was cut.
// moved are the objects whose inodes the index does not know.
func (t *Tree) recoverHistory(moved map[kml.OID]bool) error {
	if t.stripped {
		if err := t.allObjects(moved); err != nil {
			return err
		}
	}
	if err := t.adoptAll(moved); err != nil {
		return err
	}
	// The tables are in the page cache only: after a crash of the machine, and
	// in a copy, they tell of anything between then and long ago.
	for slot := range t.intents.All() {
		t.intents.Clear(slot)
	}
	for slot := range t.dirty.All() {
		t.dirty.Clear(slot)
	}
	if err := t.emptyStage(); err != nil {
		return err
	}
	if t.lost.Load() {
		if err := t.findAgain(); err != nil {
			return err
		}
		t.lost.Store(false)
	} else if len(t.past.recs) > 0 {
		if err := t.weigh(t.past); err != nil {
			return err
		}
	}
	fault.Point("tree.weighed")
	t.fresh.all = true
	if err := t.commit(t.ctx); err != nil {
		return err
	}
	if err := t.index.Flush(); err != nil {
		return err
	}
	if t.state.Copied {
		if err := t.state.claim(); err != nil {
			return err
		}
	}
	fault.Point("tree.settled")
	if err := t.state.beginRun(t.opt.Boot, t.now()); err != nil {
		return err
	}
	t.past, t.stripped = nil, false
	return ignore(os.Remove(t.state.Path(evidenceFile)), fs.ErrNotExist)
}

// claim makes a copied fileset the one of this folder on this machine.
func (s *State) claim() error {
	h, err := HandleAt(unix.AT_FDCWD, s.dir)
	if err != nil {
		return err
	}
	return s.Update(func(f *Fileset) {
		f.RootHandle, f.Machine = base64.StdEncoding.EncodeToString(h), machineID()
	})
}

// emptyStage removes all uploads: a crash may have cut them short.
func (t *Tree) emptyStage() error {
	es, err := os.ReadDir(t.Stage())
	if err != nil {
		return err
	}
	for _, e := range es {
		if err := os.RemoveAll(filepath.Join(t.Stage(), e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// adoptAll finds the inodes of objects by name, as far as they are what the
// index says. What differs is settled by the scan.
func (t *Tree) adoptAll(oids map[kml.OID]bool) error {
	type inode struct {
		oid    kml.OID
		st     unix.Statx_t
		handle []byte
	}
	var found []inode
	flush := func() error {
		err := t.index.Update(func(b *Batch) error {
			for i := range found {
				if err := noteInode(b, found[i].oid, &found[i].st, found[i].handle); err != nil {
					return err
				}
			}
			return nil
		})
		found = found[:0]
		return err
	}
	for oid := range oids {
		o, err := t.index.Get(oid)
		if errors.Is(err, ErrNotFound) || oid == kml.RootOID {
			continue
		}
		if err != nil {
			return err
		}
		bare := *o
		bare.Handle = nil
		fd, err := t.openNamed(&bare)
		if errors.Is(err, errMismatch) {
			continue
		}
		if err != nil {
			return err
		}
		n := inode{oid: oid}
		err = unix.Statx(fd, "", unix.AT_EMPTY_PATH, statxMask, &n.st)
		if err == nil {
			n.handle, err = HandleAt(fd, "")
		}
		unix.Close(fd)
		if err != nil {
			return err
		}
		if !looksLike(o, &n.st) {
			continue
		}
		if found = append(found, n); len(found) == 512 {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// looksLike reports whether an inode is of o's type and, for a file, has o's
// size and time: then nobody wrote to it since.
func looksLike(o *Object, st *unix.Statx_t) bool {
	if o.Attr.Mode&unix.S_IFMT != uint32(st.Mode)&unix.S_IFMT {
		return false
	}
	return st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size == o.Attr.Size && nsOf(st.Mtime) == o.Attr.Mtime
}
