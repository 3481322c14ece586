package feed

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/mezzofs/mezzo/kml"
)

// Request is what a reader of feed asks for.
type Request struct {
	From   kml.Position // the last record the reader has; 0: from the beginning
	CRC    uint32       // the chain's CRC after From, as the reader has it
	Inline int          // contents of stores up to this size are put in, bytes; 0: none
}

// String is the request as a line, with its newline:
//
//	from POSITION crc CRC inline BYTES
//
// POSITION is EPOCH.RECNO and BYTES a number, in decimal; CRC has 8 hex digits.
func (r Request) String() string {
	return fmt.Sprintf("from %s crc %08x inline %d\n", r.From, r.CRC, r.Inline)
}

// ParseRequest reads such a line; the newline may be missing. What asks for
// more than MaxInline gets MaxInline.
func ParseRequest(line string) (Request, error) {
	v, err := words(line, "from", "crc", "inline")
	if err != nil {
		return Request{}, err
	}
	var r Request
	if r.From, err = kml.ParsePosition(v[0]); err != nil {
		return Request{}, bad(line)
	}
	crc, err := strconv.ParseUint(v[1], 16, 32)
	if err != nil || len(v[1]) != 8 {
		return Request{}, bad(line)
	}
	r.CRC = uint32(crc)
	n, err := strconv.ParseUint(v[2], 10, 62)
	if err != nil {
		return Request{}, bad(line)
	}
	r.Inline = int(min(n, MaxInline))
	return r, nil
}

// SnapshotRequest is what a reader of snapshot asks for.
type SnapshotRequest struct {
	OID   kml.OID
	Depth int // 0: the object alone; 1: its entries too; -1: the whole subtree
	// Inline is up to which size contents of files are put in, in bytes; 0: none.
	Inline int
}

// String is the request as a line, with its newline:
//
//	under OID depth N
//	under OID depth N inline BYTES
//
// OID is SITE:COUNTER in decimal.
func (r SnapshotRequest) String() string {
	if r.Inline > 0 {
		return fmt.Sprintf("under %s depth %d inline %d\n", r.OID, r.Depth, r.Inline)
	}
	return fmt.Sprintf("under %s depth %d\n", r.OID, r.Depth)
}

// ParseSnapshotRequest reads such a line; the newline may be missing. What asks
// for more than MaxInline gets MaxInline.
func ParseSnapshotRequest(line string) (SnapshotRequest, error) {
	var r SnapshotRequest
	v, err := words(line, "under", "depth")
	if err != nil {
		if v, err = words(line, "under", "depth", "inline"); err != nil {
			return SnapshotRequest{}, err
		}
		n, err := strconv.ParseUint(v[2], 10, 62)
		if err != nil {
			return SnapshotRequest{}, bad(line)
		}
		r.Inline = int(min(n, MaxInline))
	}
	if r.OID, err = kml.ParseOID(v[0]); err != nil {
		return SnapshotRequest{}, bad(line)
	}
	if r.Depth, err = strconv.Atoi(v[1]); err != nil || r.Depth < -1 || r.Depth > 1<<20 {
		return SnapshotRequest{}, bad(line)
	}
	return r, nil
}

// words takes a line of keys, each followed by its value, apart.
func words(line string, keys ...string) ([]string, error) {
	if len(line) > MaxLine {
		return nil, bad(line)
	}
	f := strings.Split(strings.TrimSuffix(line, "\n"), " ")
	if len(f) != 2*len(keys) {
		return nil, bad(line)
	}
	var v []string
	for i, k := range keys {
		if f[2*i] != k {
			return nil, bad(line)
		}
		v = append(v, f[2*i+1])
	}
	return v, nil
}

func bad(line string) error {
	if len(line) > 80 {
		line = line[:80]
	}
	return fmt.Errorf("%q: %w", line, ErrRequest)
}
