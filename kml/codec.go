package kml

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// Sizes of the binary form, in bytes.
const (
	MaxRecord  = 128 << 10 // the longest record
	MinRecord  = prefixLen + trailerLen
	prefixLen  = 44
	trailerLen = 12
)

// The two bytes behind a record's length.
const (
	recordMagic  = 'K'
	recordFormat = 1
)

const (
	knownMustFlags = FlagNoReplace | FlagExchange
	mustFlags      = Flags(0x00ff)
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// AppendRecord appends r in binary form to dst. prevCRC is the CRC of the
// record before it in a log; frozen records (outbox, intents, feed) use 0. crc
// is the record's own. When it fails, out is dst as it came: ErrInvalid or
// ErrTooLarge. It allocates nothing but room in dst.
func AppendRecord(dst []byte, r *Record, prevCRC uint32) (out []byte, crc uint32, err error) {
	if err := r.check(); err != nil {
		return dst, 0, err
	}
	start := len(dst)
	b := append(dst, 0, 0, 0, 0, recordMagic, recordFormat)
	le := binary.LittleEndian
	b = le.AppendUint16(b, uint16(r.Op))
	b = le.AppendUint64(b, uint64(r.Pos))
	b = le.AppendUint64(b, uint64(r.Time))
	b = le.AppendUint32(b, r.UID)
	b = le.AppendUint32(b, r.GID)
	b = le.AppendUint64(b, uint64(MakeOID(r.Origin.Site, r.Origin.Seq)))
	b = le.AppendUint16(b, uint16(r.Flags))
	b = append(b, 0, 0)
	b = appendBody(b, r)
	for (len(b)-start+trailerLen)%8 != 0 {
		b = append(b, 0)
	}
	n := len(b) - start + trailerLen
	if n > MaxRecord {
		return dst, 0, fmt.Errorf("%s of %s: %d bytes: %w", r.Op, r.OID, n, ErrTooLarge)
	}
	le.PutUint32(b[start:], uint32(n))
	crc = crc32.Update(prevCRC, castagnoli, b[start:])
	b = le.AppendUint32(b, prevCRC)
	b = le.AppendUint32(b, crc)
	b = le.AppendUint32(b, uint32(n))
	return b, crc, nil
}

// EncodedLen is how long r is in binary form; an error as of AppendRecord. It
// encodes into scratch, which may be nil and is grown.
func EncodedLen(scratch []byte, r *Record) (int, error) {
	b, _, err := AppendRecord(scratch[:0], r, 0)
	return len(b), err
}

// check finds what the binary form cannot hold.
func (r *Record) check() error {
	switch {
	case r.Op == 0:
		return fmt.Errorf("no opcode: %w", ErrInvalid)
	case r.Origin.Site > MaxSite || r.Origin.Seq > MaxCounter:
		return fmt.Errorf("%s: origin %d:%d: %w", r.Op, r.Origin.Site, r.Origin.Seq, ErrInvalid)
	case r.Site > MaxSite:
		return fmt.Errorf("%s: site %d: %w", r.Op, r.Site, ErrInvalid)
	case r.Flags&mustFlags&^knownMustFlags != 0:
		return fmt.Errorf("%s: flags %s: %w", r.Op, r.Flags, ErrInvalid)
	}
	return nil
}

// recordLen looks at the first bytes of b: how long the record is that begins
// there. ErrShort when b is too short to tell.
func recordLen(b []byte) (int, error) {
	if len(b) < 8 {
		return 0, ErrShort
	}
	n := binary.LittleEndian.Uint32(b)
	if n < MinRecord || n > MaxRecord || n%8 != 0 {
		return 0, fmt.Errorf("length %d: %w", n, ErrCorrupt)
	}
	if b[4] != recordMagic {
		return 0, fmt.Errorf("byte %#02x where a record begins: %w", b[4], ErrCorrupt)
	}
	return int(n), nil
}

// checkFrame checks the record at the start of b as a whole: lengths and CRC,
// by itself, without its place in a chain. It gives the record's length, the
// CRC it says came before and its own.
func checkFrame(b []byte) (n int, prev, crc uint32, err error) {
	if n, err = recordLen(b); err != nil {
		return 0, 0, 0, err
	}
	if len(b) < n {
		return 0, 0, 0, fmt.Errorf("%d of %d bytes: %w", len(b), n, ErrShort)
	}
	le := binary.LittleEndian
	t := b[n-trailerLen : n]
	prev, crc = le.Uint32(t), le.Uint32(t[4:])
	if end := le.Uint32(t[8:]); end != uint32(n) {
		return 0, 0, 0, fmt.Errorf("length %d at the start, %d at the end: %w", n, end, ErrCorrupt)
	}
	if got := crc32.Update(prev, castagnoli, b[:n-trailerLen]); got != crc {
		return 0, 0, 0, fmt.Errorf("CRC %08x, computed %08x: %w", crc, got, ErrCorrupt)
	}
	if b[5] != recordFormat {
		return 0, 0, 0, fmt.Errorf("record format %d: %w", b[5], ErrNewer)
	}
	return n, prev, crc, nil
}

// checkChained is checkFrame and the chain.
func checkChained(b []byte, prevCRC uint32) (n int, crc uint32, err error) {
	n, prev, crc, err := checkFrame(b)
	if err == nil && prev != prevCRC {
		err = fmt.Errorf("follows CRC %08x, not %08x: %w", prev, prevCRC, ErrChain)
	}
	return n, crc, err
}

// rawPos is the position of a checked record.
func rawPos(b []byte) Position { return Position(binary.LittleEndian.Uint64(b[8:])) }

// rawOp is the opcode of a checked record.
func rawOp(b []byte) Op { return Op(binary.LittleEndian.Uint16(b[6:])) }

// rawTime is the time of a checked record.
func rawTime(b []byte) int64 { return int64(binary.LittleEndian.Uint64(b[16:])) }

// ParseRecord reads the record at the start of b and says how many bytes it
// took and which CRC it ends the chain with. The record does not alias b.
// ErrShort: b ends before the record does. ErrCorrupt: these bytes are no
// record. ErrChain: it does not follow prevCRC. ErrNewer: it has an opcode,
// flag or field that must be understood and is not.
func ParseRecord(b []byte, prevCRC uint32) (r *Record, n int, crc uint32, err error) {
	if n, crc, err = checkChained(b, prevCRC); err != nil {
		return nil, 0, 0, err
	}
	r = new(Record)
	if err := parseChecked(b[:n], r); err != nil {
		return nil, 0, 0, err
	}
	return r, n, crc, nil
}

// parseChecked fills r from one record whose lengths and CRC are right.
func parseChecked(b []byte, r *Record) error {
	le := binary.LittleEndian
	r.Op = Op(le.Uint16(b[6:]))
	r.Pos = Position(le.Uint64(b[8:]))
	r.Time = int64(le.Uint64(b[16:]))
	r.UID = le.Uint32(b[24:])
	r.GID = le.Uint32(b[28:])
	o := OID(le.Uint64(b[32:]))
	r.Origin = Origin{o.Site(), o.Counter()}
	r.Flags = Flags(le.Uint16(b[40:]))
	switch {
	case r.Op == 0:
		return fmt.Errorf("position %s: opcode 0: %w", r.Pos, ErrCorrupt)
	case r.Op > OpMark && r.Op&OpOptional == 0:
		return fmt.Errorf("position %s: opcode %d: %w", r.Pos, r.Op, ErrNewer)
	case r.Flags&mustFlags&^knownMustFlags != 0:
		return fmt.Errorf("position %s: flags %s: %w", r.Pos, r.Flags, ErrNewer)
	case b[42] != 0 || b[43] != 0:
		return fmt.Errorf("position %s: reserved bytes: %w", r.Pos, ErrNewer)
	}
	if err := parseBody(b[prefixLen:len(b)-trailerLen], r); err != nil {
		return fmt.Errorf("position %s: %s: %w", r.Pos, r.Op, err)
	}
	return nil
}

// Reseal gives the encoded record b, whatever chain it was in, the CRCs of a
// record that follows prevCRC, in place, and returns its own CRC. The record
// must be whole: its old CRC is checked first, so damage is not sealed in.
func Reseal(b []byte, prevCRC uint32) (crc uint32, err error) {
	n, prev, crc, err := checkFrame(b)
	if err != nil {
		return 0, err
	}
	if n != len(b) {
		return 0, fmt.Errorf("%d bytes behind the record: %w", len(b)-n, ErrCorrupt)
	}
	if prev == prevCRC {
		return crc, nil
	}
	return seal(b, prevCRC), nil
}

// seal is Reseal of a record that was checked.
func seal(b []byte, prevCRC uint32) (crc uint32) {
	t := b[len(b)-trailerLen:]
	crc = crc32.Update(prevCRC, castagnoli, b[:len(b)-trailerLen])
	binary.LittleEndian.PutUint32(t, prevCRC)
	binary.LittleEndian.PutUint32(t[4:], crc)
	return crc
}
