package tree

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// Offer is contents of a damaged file that somebody else still has.
type Offer struct {
	OID     kml.OID
	Version kml.Position // whose contents they are
	Mtime   int64        // that version's, ns
	Digest  []byte       // BLAKE3 of the contents, 32 bytes; nil is not checked
}

// DamagedSince lists the damaged files that were found after seq, 0 for all of
// them. last is the seq to go on from; more is closed when another is found, and
// nil where none ever is.
func (t *Tree) DamagedSince(seq uint64) (list []Damaged, last uint64, more <-chan struct{}) {
	return t.damage.since(seq)
}

// Wanted reports whether an offer is of use: ENOENT when the file is not, or no
// longer, damaged; ESTALE when it is gone; EBUSY when the offer is of a version
// that the file has left behind, or that is another record's of this history.
func (t *Tree) Wanted(of Offer) error {
	_, err := t.offered(of)
	return err
}

func (t *Tree) offered(of Offer) (*Object, error) {
	if _, bad := t.damage.has(of.OID); !bad {
		return nil, fmt.Errorf("object %v is not damaged: %w", of.OID, syscall.ENOENT)
	}
	o, err := t.index.Get(of.OID)
	if err != nil {
		return nil, orErrno(err, ErrNotFound, syscall.ESTALE, 0)
	}
	switch {
	case of.Version == o.DataVersion:
		if of.Mtime != o.Attr.Mtime {
			return nil, fmt.Errorf("version %v of object %v has another time here: %w", of.Version, of.OID, syscall.EBUSY)
		}
		return o, nil
	case of.Version < o.DataVersion && !t.madeAgain(o, of.Version):
		return nil, fmt.Errorf("object %v is of version %v, not of %v: %w", of.OID, o.DataVersion, of.Version, syscall.EBUSY)
	}
	// A version that the crash took has no record in this history any more.
	_, err = t.log.CRCAt(of.Version)
	switch {
	case err == nil, errors.Is(err, kml.ErrTruncated), of.Version.Epoch() >= t.log.Epoch():
		return nil, fmt.Errorf("object %v has no version %v: %w", of.OID, of.Version, syscall.EBUSY)
	case !errors.Is(err, kml.ErrHistoryCut):
		return nil, err
	}
	return o, nil
}

// Mend gives a damaged file its contents back: staged is the path of a file in
// Stage with the offered bytes, which c has to be allowed to put there. They
// become a store, so that everybody has them. The errors are those of Wanted;
// EINVAL when the bytes are not what the offer says.
func (t *Tree) Mend(ctx context.Context, c *Cred, of Offer, staged string) error {
	o, err := t.offered(of)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(staged, &st); err != nil {
		return fmt.Errorf("%s: %w", staged, err)
	}
	if of.Version == o.DataVersion {
		if uint64(st.Size) != o.Attr.Size {
			return fmt.Errorf("version %v of object %v has %d bytes, not %d: %w", of.Version, of.OID, o.Attr.Size, st.Size, syscall.EINVAL)
		}
		if r := t.recordAt(of.Version); r != nil && r.Op == kml.OpStore && r.Digest != nil {
			of.Digest = r.Digest
		}
	}
	r := t.record(c, kml.OpStore)
	r.OID, r.Base.Pos, r.Flags, r.Digest = of.OID, o.DataVersion, kml.FlagRecovered, of.Digest
	r.Attr = kml.Attr{Size: uint64(st.Size), Mtime: of.Mtime}
	if err := t.replace(ctx, c, r, staged); err != nil {
		return err
	}
	t.logger.Info("damaged file has its contents again", "fileset", t.dir, "oid", of.OID, "name", o.Name, "version", of.Version.String())
	return nil
}

// recordAt is the record at a position; nil when the log no longer has it.
func (t *Tree) recordAt(p kml.Position) *kml.Record {
	if p.Recno() == 0 {
		return nil
	}
	r, err := t.log.ReaderAfter(p - 1)
	if err != nil {
		return nil
	}
	defer r.Close()
	rec, err := r.TryNext()
	if err != nil || rec.Pos != p {
		return nil
	}
	return rec
}

// madeAgain reports whether an object's present version is no more than its
// making, logged again after the crash that took what was stored at lost.
func (t *Tree) madeAgain(o *Object, lost kml.Position) bool {
	if lost.Epoch()+1 != o.DataVersion.Epoch() {
		return false
	}
	r := t.recordAt(o.DataVersion)
	return r != nil && r.OID == o.OID && r.Op == kml.OpCreate && r.Flags&kml.FlagRecovered != 0
}
