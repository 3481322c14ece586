package local

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"github.com/mezzofs/mezzo/kml"
)

// The kinds of entry in the file.
const (
	kindChange = 1
	kindFrozen = 2
	kindDone   = 3
	kindNext   = 4
	kindThawed = 5
	kindGroup  = 6
	kindSynced = 7
	maxGroup   = 256 << 20

	headLen   = 9
	changeLen = 33 // before the record
	magic     = "mezzolo1"
	rewriteAt = 1 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// load reads the file and cuts what was not written whole.
func (l *Log) load() error {
	all, err := io.ReadAll(l.f)
	if err != nil {
		return err
	}
	if len(all) < len(magic) {
		b := appendEntry([]byte(magic), kindSynced, word(uint64(len(magic))))
		l.end, l.marked = int64(len(b)), true
		_, err := l.f.WriteAt(b, 0)
		return err
	}
	if string(all[:len(magic)]) != magic {
		return fmt.Errorf("format %q: %w", all[:len(magic)], kml.ErrNewer)
	}
	at := len(magic)
	for {
		kind, body, ok := parseEntry(all[at:])
		if !ok {
			break
		}
		if err := l.read(kind, body, int64(at)); err != nil {
			return fmt.Errorf("offset %d: %w", at, err)
		}
		at += headLen + len(body)
	}
	l.end = int64(at)
	l.settleSynced()
	l.compact()
	return l.f.Truncate(l.end)
}

func parseEntry(b []byte) (kind byte, body []byte, ok bool) {
	if len(b) < headLen {
		return 0, nil, false
	}
	n := binary.LittleEndian.Uint32(b)
	if n > maxGroup || int(n) > len(b)-headLen {
		return 0, nil, false
	}
	rest := b[8 : headLen+int(n)]
	if crc32.Checksum(rest, castagnoli) != binary.LittleEndian.Uint32(b[4:]) {
		return 0, nil, false
	}
	return rest[0], rest[1:], true
}

func appendEntry(b []byte, kind byte, body []byte) []byte {
	start := len(b)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(body)))
	b = append(b, 0, 0, 0, 0, kind)
	b = append(b, body...)
	binary.LittleEndian.PutUint32(b[start+4:], crc32.Checksum(b[start+8:], castagnoli))
	return b
}

// appendChange appends a change, without its origin.
func appendChange(b []byte, e *Entry, rec *kml.Record) ([]byte, error) {
	r := *rec
	r.Origin = kml.Origin{}
	head := word(e.ID)
	head = binary.LittleEndian.AppendUint64(head, uint64(e.At))
	head = binary.LittleEndian.AppendUint64(head, e.After)
	head = binary.LittleEndian.AppendUint64(head, e.Over)
	data := byte(0)
	if e.Data {
		data = 1
	}
	body, _, err := kml.AppendRecord(append(head, data), &r, 0)
	if err != nil {
		return b, err
	}
	return appendEntry(b, kindChange, body), nil
}

func parseRecord(b []byte) (*kml.Record, error) {
	r, n, _, err := kml.ParseRecord(b, 0)
	if err != nil {
		return nil, err
	}
	if n != len(b) {
		return nil, kml.ErrCorrupt
	}
	return r, nil
}

// read takes up one entry of the file, which begins at an offset.
func (l *Log) read(kind byte, body []byte, at int64) error {
	if kind < kindChange || kind > kindSynced {
		return fmt.Errorf("entry of kind %d: %w", kind, kml.ErrNewer)
	}
	if kind == kindGroup {
		for len(body) > 0 {
			kind, one, ok := parseEntry(body)
			if !ok || kind == kindGroup {
				return kml.ErrCorrupt
			}
			if err := l.read(kind, one, at); err != nil {
				return err
			}
			body = body[headLen+len(one):]
		}
		return nil
	}
	if len(body) < 8 || kind == kindChange && len(body) < changeLen {
		return kml.ErrCorrupt
	}
	v := binary.LittleEndian.Uint64(body)
	e := l.byID[v]
	switch kind {
	case kindChange:
		return l.readChange(e, v, body, at)
	case kindSynced:
		l.readSynced(body)
		return nil
	case kindNext:
		l.next = max(l.next, v)
		return nil
	}
	if e == nil {
		return nil // done, and said so before
	}
	switch kind {
	case kindFrozen:
		raw := append([]byte(nil), body[8:]...)
		r, err := parseRecord(raw)
		if err != nil {
			return err
		}
		e.rec, e.raw = r, raw
		l.bySeq[r.Origin.Seq] = e
		l.next = max(l.next, r.Origin.Seq+1)
	case kindThawed:
		l.thaw(e)
	case kindDone:
		l.forget(e)
	}
	return nil
}

func (l *Log) readChange(e *Entry, id uint64, body []byte, at int64) error {
	r, err := parseRecord(body[changeLen:])
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	if e != nil { // said anew
		l.become(e, r, le.Uint64(body[16:]), le.Uint64(body[24:]))
		l.dead += int64(len(body))
		return nil
	}
	l.take(&Entry{ID: id, At: kml.Position(le.Uint64(body[8:])), After: le.Uint64(body[16:]), Over: le.Uint64(body[24:]), Data: body[32] == 1, rec: r, at: at})
	return nil
}

// write appends to the file, behind the last whole entry. The caller holds mu.
func (l *Log) write(buf []byte) error {
	if _, err := l.f.WriteAt(buf, l.end); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", filepath.Join(l.dir, "log"), err), l.f.Truncate(l.end))
	}
	l.end += int64(len(buf))
	return nil
}

// rewrite writes the file anew without what is done: what is on the disk, with its
// contents, before the rest. The caller holds mu, and no Sync is going on.
func (l *Log) rewrite() error {
	buf := appendEntry([]byte(magic), kindNext, word(l.next))
	var err error
	durable := int64(0)
	for _, synced := range [...]bool{true, false} {
		for _, e := range l.list {
			if e.gone || e.synced != synced {
				continue
			}
			if buf, err = appendChange(buf, e, e.rec); err != nil {
				return err
			}
			if e.raw != nil {
				buf = appendEntry(buf, kindFrozen, append(word(e.ID), e.raw...))
			}
		}
		if synced {
			durable = int64(len(buf))
			buf = appendEntry(buf, kindSynced, word(uint64(durable)))
		}
	}
	path := filepath.Join(l.dir, "log")
	f, err := os.OpenFile(path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(buf); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return errors.Join(err, f.Close(), os.Remove(path+".new"))
	}
	old := l.f
	l.f, l.end, l.dead, l.gen = f, int64(len(buf)), 0, l.gen+1
	// The rename is on the disk with the next Sync.
	l.durable = 0
	return old.Close()
}
