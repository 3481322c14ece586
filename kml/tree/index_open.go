package tree

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
)

// openIndex opens the index, and cuts history where log and index cannot be
// trusted. An index that is missing, damaged, a copy's or ahead of history is
// made again: from a checkpoint and the log since, or from the whole log. Where
// neither reaches, all objects are found again (startOver).
func (t *Tree) openIndex() (*Index, error) {
	path := t.state.Path("index.db")
	o := IndexOptions{Logger: t.logger, Track: func(s kml.SiteID) bool { return !t.ownSite(s) }, Firm: t.firm,
		FlushSize: t.opt.maxDirty, CheckMax: t.state.checkMax()}
	x, bad := OpenIndex(path, o)
	if bad != nil && !errors.Is(bad, ErrIndexDamaged) {
		return nil, bad
	}
	var at kml.Position
	if x != nil {
		at = x.Cursor()
	}
	if err := t.settleHistory(at); err != nil {
		if x != nil {
			err = errors.Join(err, x.Close())
		}
		return nil, err
	}
	fs := t.state.Fileset()
	t.site = fs.Site
	t.suspect.Store(fs.Suspect)
	if t.log.Epoch() == 0 || bad == nil && at != 0 && t.reaches(at) && (t.past == nil || !t.past.Copied) {
		return x, nil // just made, or as it should be
	}
	if x != nil {
		if err := x.Close(); err != nil {
			return nil, err
		}
	}
	if err := t.remakeIndex(path, bad); err != nil {
		return nil, err
	}
	return OpenIndex(path, o)
}

// checkFirst is how large an index's file may be, in bytes, to be read whole
// before anything is served: some 200,000 files. A larger one is read after an
// unclean end only, and else while it is in use.
const checkFirst = 64 << 20

// checkMax is IndexOptions.CheckMax after how the last run ended.
func (s *State) checkMax() int64 {
	if last, err := s.lastRun(); err != nil || last != nil {
		return math.MaxInt64
	}
	return checkFirst
}

// checkLoop checks a large index while it is in use: damage stops the tree.
func (t *Tree) checkLoop() {
	if err := t.index.Check(t.ctx); err != nil && t.ctx.Err() == nil {
		_ = t.breakDown(err)
	}
}

// reaches reports whether what is as of p can be brought up to date with the log.
func (t *Tree) reaches(p kml.Position) bool {
	return p >= t.log.Start() && p <= t.log.End() && (t.past == nil || p <= t.past.After)
}

// remakeIndex puts an index at path that the log goes on from.
func (t *Tree) remakeIndex(path string, bad error) error {
	if bad != nil { // a person may want to see it
		if err := os.Rename(path, path+damagedSuffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	} else if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	err := t.restoreIndex(path)
	switch {
	case err == nil:
		return nil
	case t.log.Start() == 0 && bad == nil && errors.Is(err, os.ErrNotExist):
		// Nothing is wrong: a new fileset has served nothing yet.
		t.logger.Info("index is made from the whole log", "fileset", t.dir)
		return nil
	case t.log.Start() == 0:
		t.logger.Warn("index is made again from the whole log", "fileset", t.dir, "index", bad, "checkpoint", err)
		return nil
	}
	return t.startOver(errors.Join(bad, err))
}

// restoreIndex makes the index from the checkpoint.
func (t *Tree) restoreIndex(path string) error {
	file := t.state.Path(checkpointFile)
	of, _, err := readCheckpoint(file, false)
	if err != nil {
		return err
	}
	if !t.reaches(of.cursor) || of.fileset != t.log.Fileset() {
		return fmt.Errorf("%s: is as of %s: %w", file, of.cursor, kml.ErrHistoryCut)
	}
	chain, err := t.log.CRCAt(of.cursor)
	if err == nil && chain != of.chain {
		err = fmt.Errorf("%s: is of another history: %w", file, kml.ErrHistoryCut)
	}
	if err != nil {
		return err
	}
	t.stripped = t.past != nil && t.past.Copied
	if err := restoreIndex(path, file, t.stripped); err != nil {
		return err
	}
	t.logger.Warn("index is made again from the checkpoint and the log since", "fileset", t.dir, "position", of.cursor.String())
	return nil
}

const (
	reasonIndex = "the index was lost"
	freshLog    = "kml.new"
	lostSuffix  = ".lost-" // and the epoch: what is put aside when all is found again
)

// startOver begins a history that is cut off from the one before: nothing says
// any more which objects there were. What is in the directory is found again
// under new oids; a client, whatever it has, finds its position gone, and
// compares.
func (t *Tree) startOver(cause error) error {
	if t.state.Fileset().Role != RoleMaster {
		return fmt.Errorf("index and checkpoint are lost, and the log does not reach back to its beginning: replicate into an empty folder: %w", cause)
	}
	aside := func(name string, epoch uint16) string {
		return t.state.Path(fmt.Sprintf("%s%s%d", name, lostSuffix, epoch))
	}
	fresh, epoch := t.state.Path(freshLog), t.log.Epoch()
	t.logger.Error("index and checkpoint are lost, and the log does not reach back to its beginning: all objects are found again as new ones; "+
		"clients fetch everything again and keep as conflicts what they had not sent; files that the last crash damaged are not told from whole ones",
		"fileset", t.dir, "err", cause, "log", aside("kml", epoch))
	if was, ok := epochOf(fresh); ok && was < epoch {
		epoch = was // an opener that was killed has exchanged them
	} else {
		if err := os.RemoveAll(fresh); err != nil {
			return err
		}
		if err := t.beginLog(fresh); err != nil {
			return err
		}
		fault.Point("tree.startover.made")
		if err := unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, t.state.Path("kml"), unix.RENAME_EXCHANGE); err != nil {
			return err
		}
		fault.Point("tree.startover.exchanged")
	}
	for _, name := range []string{"kml", "damaged.json", checkpointFile} {
		from := t.state.Path(name)
		if name == "kml" {
			from = fresh
		}
		if err := os.Rename(from, aside(name, epoch)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := syncDir(t.state.Path()); err != nil {
		return err
	}
	id := t.log.Fileset()
	if err := t.log.Close(); err != nil {
		return err
	}
	var err error
	if t.log, err = kml.Open(t.state.Path("kml"), kml.Options{Fileset: id, Now: t.opt.Now}); err != nil {
		return err
	}
	if t.damage, err = openDamage(t.state.Path("damaged.json")); err != nil {
		return err
	}
	if err := t.state.newEpoch(t.log.Epoch(), nil); err != nil {
		return err
	}
	t.site, t.past = t.state.Fileset().Site, &evidence{Reason: reasonIndex, After: t.log.End()}
	t.lost.Store(true)
	t.suspect.Store(nil)
	return nil
}

// epochOf is the last epoch of a log that may not be there.
func epochOf(dir string) (uint16, bool) {
	l, err := kml.Open(dir, kml.Options{ReadOnly: true})
	if err != nil {
		return 0, false
	}
	return l.Epoch(), l.Close() == nil
}

// beginLog makes the log of a history that nobody has followed: it goes on
// behind a record that there never was.
func (t *Tree) beginLog(dir string) error {
	var b [20]byte
	if _, err := rand.Read(b[:]); err != nil {
		return err
	}
	l, err := kml.Open(dir, kml.Options{Fileset: t.log.Fileset(), Now: t.opt.Now, After: t.log.End() + 1, AfterCRC: binary.LittleEndian.Uint32(b[16:])})
	if err != nil {
		return err
	}
	if _, err = l.StartEpoch(reasonIndex, [16]byte(b[:16])); err == nil {
		err = l.Commit()
	}
	return errors.Join(err, l.Close())
}

// findAgain gives everything in the directory a record, and takes from what is
// left of lost histories which records of clients they had: those are not
// applied twice.
func (t *Tree) findAgain() error {
	es, err := os.ReadDir(t.state.Path())
	if err != nil {
		return err
	}
	for _, e := range es {
		if !strings.HasPrefix(e.Name(), "kml"+lostSuffix) {
			continue
		}
		dir := t.state.Path(e.Name())
		l, err := kml.Open(dir, kml.Options{ReadOnly: true})
		if err == nil {
			err = errors.Join(t.keepOrigins(l), l.Close())
		}
		if err != nil {
			t.logger.Error("which records of clients were applied is not known any more", "fileset", t.dir, "log", dir, "err", err)
		}
	}
	return t.importDir(t.ctx, nil)
}

// keepOrigins notes where records of clients stand in a log.
func (t *Tree) keepOrigins(l *kml.Log) error {
	rd, err := l.ReaderAfter(l.Start())
	if err != nil {
		return err
	}
	defer rd.Close()
	for end := false; !end; {
		err := t.index.Update(func(b *Batch) error {
			for range 256 {
				r, err := rd.TryNext()
				if err == io.EOF {
					end = true
					return nil
				}
				if err != nil {
					return err
				}
				var made kml.OID
				switch r.Op {
				case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod:
					made = r.OID
				}
				if r.Origin != (kml.Origin{}) && !t.ownSite(r.Origin.Site) {
					b.SetApplied(r.Origin, r.Pos, made)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// allObjects are the oids of all objects that the index has.
func (t *Tree) allObjects(into map[kml.OID]bool) error {
	v, err := t.index.View()
	if err != nil {
		return err
	}
	defer v.Close()
	return v.each(func(o *Object) error {
		into[o.OID] = true
		return nil
	})
}
