package cachefs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
)

// An outbox keeps frozen records from before their first byte is sent until
// their outcome is known and durable, so that they can be sent again byte for
// byte, by this process or the next. It is a folder:
//
//	log   entries, appended: u32 length of the body, u32 CRC-32C of kind and
//	      body, u8 kind, body
//	SEQ   the contents of the store of that number (decimal)
//
// Kinds: a frozen record (kind 1), "record SEQ is done" (2, u64), "numbers below
// SEQ are used" (3, u64). What follows the last whole entry was being written
// by a process that was killed, and is cut. The file is written anew, by
// rename, when most of it is done.
type outbox struct {
	dir string

	mu   sync.Mutex
	f    *os.File
	end  int64
	next uint64 // the next record's number
	live map[uint64]frozen
	dead int64 // bytes in the log that are done
}

// frozen is a record as it is sent.
type frozen struct {
	rec *kml.Record
	raw []byte
}

const (
	entryRecord = 1
	entryDone   = 2
	entryNext   = 3
	entryHead   = 9
	outboxMagic = "mezzoob1"
	rewriteAt   = 1 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func openOutbox(dir string) (*outbox, error) {
	b := &outbox{dir: dir, next: 1, live: make(map[uint64]frozen)}
	f, err := os.OpenFile(filepath.Join(dir, "log"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	b.f = f
	if err := b.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", f.Name(), err), f.Close())
	}
	return b, b.dropStray()
}

// load reads the log and cuts what was not written whole.
func (b *outbox) load() error {
	all, err := io.ReadAll(b.f)
	if err != nil {
		return err
	}
	if len(all) < len(outboxMagic) {
		b.end = int64(len(outboxMagic))
		_, err := b.f.WriteAt([]byte(outboxMagic), 0)
		return err
	}
	if string(all[:len(outboxMagic)]) != outboxMagic {
		return fmt.Errorf("format %q: %w", all[:len(outboxMagic)], kml.ErrNewer)
	}
	at := len(outboxMagic)
	for {
		kind, body, ok := parseEntry(all[at:])
		if !ok {
			break
		}
		if err := b.take(kind, body); err != nil {
			return fmt.Errorf("offset %d: %w", at, err)
		}
		at += entryHead + len(body)
	}
	b.end = int64(at)
	return b.f.Truncate(b.end)
}

func parseEntry(b []byte) (kind byte, body []byte, ok bool) {
	if len(b) < entryHead {
		return 0, nil, false
	}
	n := binary.LittleEndian.Uint32(b)
	if n > kml.MaxRecord || int(n) > len(b)-entryHead {
		return 0, nil, false
	}
	sum := binary.LittleEndian.Uint32(b[4:])
	rest := b[8 : entryHead+int(n)]
	if crc32.Checksum(rest, castagnoli) != sum {
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

func seqBody(seq uint64) []byte { return binary.LittleEndian.AppendUint64(nil, seq) }

func (b *outbox) take(kind byte, body []byte) error {
	switch kind {
	case entryRecord:
		r, n, _, err := kml.ParseRecord(body, 0)
		if err != nil {
			return err
		}
		if n != len(body) {
			return kml.ErrCorrupt
		}
		b.live[r.Origin.Seq] = frozen{r, slices.Clone(body)}
		b.next = max(b.next, r.Origin.Seq+1)
	case entryDone, entryNext:
		if len(body) != 8 {
			return kml.ErrCorrupt
		}
		seq := binary.LittleEndian.Uint64(body)
		if kind == entryNext {
			b.next = max(b.next, seq)
			break
		}
		b.dead += int64(len(b.live[seq].raw))
		delete(b.live, seq)
	default:
		return kml.ErrNewer
	}
	return nil
}

// dropStray removes contents whose record was not written.
func (b *outbox) dropStray() error {
	es, err := os.ReadDir(b.dir)
	if err != nil {
		return err
	}
	for _, e := range es {
		if e.Name() == "log" {
			continue
		}
		seq, err := strconv.ParseUint(e.Name(), 10, 64)
		if _, ok := b.live[seq]; err == nil && ok {
			continue
		}
		if err := os.Remove(filepath.Join(b.dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// data is where the contents of a store are.
func (b *outbox) data(seq uint64) string {
	return filepath.Join(b.dir, strconv.FormatUint(seq, 10))
}

// number gives the next n numbers out. They are never given again once a record
// was frozen under one of them or a higher one.
func (b *outbox) number(n int) (first uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	first = b.next
	b.next += uint64(n)
	return first
}

// above makes the next number higher than seq, for good.
func (b *outbox) above(seq uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next > seq {
		return nil
	}
	if err := b.append(appendEntry(nil, entryNext, seqBody(seq+1))); err != nil {
		return err
	}
	b.next = seq + 1
	return nil
}

// freeze keeps records, which have their numbers. They are in the page cache
// when it returns: a killed process sends them again.
func (b *outbox) freeze(recs []*kml.Record) ([]frozen, error) {
	var buf []byte
	fs := make([]frozen, len(recs))
	for i, r := range recs {
		raw, _, err := kml.AppendRecord(nil, r, 0)
		if err != nil {
			return nil, err
		}
		fs[i] = frozen{r, raw}
		buf = appendEntry(buf, entryRecord, raw)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.append(buf); err != nil {
		return nil, err
	}
	fault.Point("outbox.frozen")
	for _, f := range fs {
		b.live[f.rec.Origin.Seq] = f
	}
	return fs, nil
}

// append writes entries behind the last whole one. The caller holds mu.
func (b *outbox) append(buf []byte) error {
	if _, err := b.f.WriteAt(buf, b.end); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", b.f.Name(), err), b.f.Truncate(b.end))
	}
	b.end += int64(len(buf))
	return nil
}

// done forgets records whose outcome is known for good.
func (b *outbox) done(seqs ...uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var buf []byte
	for _, seq := range seqs {
		if f, ok := b.live[seq]; ok {
			buf = appendEntry(buf, entryDone, seqBody(seq))
			b.dead += int64(len(f.raw))
			delete(b.live, seq)
		}
	}
	if buf == nil {
		return nil
	}
	if err := b.append(buf); err != nil {
		return err
	}
	for _, seq := range seqs {
		if err := os.Remove(b.data(seq)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if b.end > rewriteAt && b.dead > b.end/2 {
		return b.rewrite()
	}
	return nil
}

// rewrite writes the log anew without what is done. The caller holds mu.
func (b *outbox) rewrite() error {
	buf := appendEntry([]byte(outboxMagic), entryNext, seqBody(b.next))
	for _, f := range b.sorted() {
		buf = appendEntry(buf, entryRecord, f.raw)
	}
	tmp := b.f.Name() + ".new"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(buf); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(tmp, b.f.Name())
	}
	if err != nil {
		return errors.Join(err, f.Close(), os.Remove(tmp))
	}
	old := b.f
	// The descriptor's name is the temporary one; the path stays the log's.
	if b.f, err = os.OpenFile(filepath.Join(b.dir, "log"), os.O_RDWR, 0o600); err != nil {
		b.f = old
		return errors.Join(err, f.Close())
	}
	b.end, b.dead = int64(len(buf)), 0
	return errors.Join(f.Close(), old.Close())
}

func (b *outbox) sorted() []frozen {
	out := make([]frozen, 0, len(b.live))
	for _, f := range b.live {
		out = append(out, f)
	}
	slices.SortFunc(out, func(x, y frozen) int { return int(int64(x.rec.Origin.Seq - y.rec.Origin.Seq)) })
	return out
}

// pending are the records whose outcome is not known for good, in order.
func (b *outbox) pending() []frozen {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sorted()
}

// known is a number up to which every record's outcome is known.
func (b *outbox) known() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := b.next - 1
	for seq := range b.live {
		k = min(k, seq-1)
	}
	return k
}

// sync makes what is in the outbox durable.
func (b *outbox) sync(seq uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.f.Sync()
	if f, e := os.Open(b.data(seq)); e == nil {
		err = errors.Join(err, f.Sync(), f.Close())
	}
	d, e := os.Open(b.dir)
	if e != nil {
		return errors.Join(err, e)
	}
	return errors.Join(err, d.Sync(), d.Close())
}

func (b *outbox) close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.f.Close()
}
