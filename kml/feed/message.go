package feed

import (
	"encoding/binary"
	"encoding/json"
	"fmt"

	"github.com/mezzofs/mezzo/kml"
)

// Greeting is the first answer to a feed request: who speaks, and from where
// to where its log reaches. JSON.
type Greeting struct {
	Version int          `json:"version"`
	Fileset string       `json:"fileset"`  // UUID as text
	Epoch   uint16       `json:"epoch"`    // of End
	EpochID string       `json:"epoch_id"` // hex
	First   kml.Position `json:"first"`    // oldest record still there
	End     kml.Position `json:"end"`
	Durable kml.Position `json:"durable"`
}

// Code is what a Failure is about, for programs.
type Code string

// The codes of a Failure.
const (
	CodeHistoryCut Code = "history-cut" // the position or its CRC is not in this history
	CodeTruncated  Code = "truncated"   // the log no longer reaches back to the position
	CodeNotAllowed Code = "not-allowed" // the user has not the right
	CodeNewer      Code = "newer"       // one side speaks a newer version
	CodeBadRequest Code = "bad-request" // not understood
	CodeNoObject   Code = "no-object"   // snapshot of what is not there
	CodeReplaced   Code = "replaced"    // a newer session of the site began
	CodeStopped    Code = "stopped"     // the fileset stops
	CodeInternal   Code = "internal"
)

// Failure ends a stream: what went wrong. JSON. It is an error.
type Failure struct {
	Code Code   `json:"code"`
	Text string `json:"text"`
}

// Error is the text and the code.
func (f *Failure) Error() string { return fmt.Sprintf("%s (%s)", f.Text, f.Code) }

// Record is one record of the feed, without contents.
type Record struct{ Record *kml.Record }

// RecordData is a store, or the create of a file that was found with contents,
// together with the whole contents of the file at that version.
type RecordData struct {
	Record *kml.Record
	Data   []byte
}

// Heartbeat says that the stream lives, how far the log reaches and how far it
// is durable. Time is the sender's clock, nanoseconds since 1970.
type Heartbeat struct {
	End     kml.Position
	Durable kml.Position
	Time    int64
}

// Changing says that an object's bytes are being written and belong to no
// version now.
type Changing struct{ OID kml.OID }

// Damaged says that a crash of the machine took an object's contents at that
// version. Whoever has them, or those of a version that came later and was lost,
// may offer them.
type Damaged struct {
	OID     kml.OID
	Version kml.Position
}

// SnapBegin opens a snapshot: the tree under OID as it was at Position. CRC is
// the chain's after that record, so that a reader can follow the feed from there.
type SnapBegin struct {
	Position kml.Position
	OID      kml.OID
	CRC      uint32
}

// Entry is one name of a snapshot as the record that would make it: create,
// mkdir, symlink or mknod with all attributes and xattrs; a further name of an
// object that came before is a link. A folder comes before what is in it.
type Entry struct {
	Record      *kml.Record
	Version     kml.Position // last change of any kind
	DataVersion kml.Position // last change of contents
}

// EntryData is an Entry of a regular file together with its whole contents at
// DataVersion.
type EntryData struct {
	Entry
	Data []byte
}

// SnapEnd closes a snapshot: how many entries it had.
type SnapEnd struct{ Count uint64 }

// Hello opens a session of reint. JSON.
type Hello struct {
	Version int        `json:"version"`
	Site    kml.SiteID `json:"site"`          // 0: enrol me
	Key     string     `json:"key,omitempty"` // hex, as given by the last Welcome
	Host    string     `json:"host"`
	Known   uint64     `json:"known"` // own records up to this number: outcome is known
}

// Welcome answers Hello. JSON.
type Welcome struct {
	Version    int          `json:"version"`
	Site       kml.SiteID   `json:"site"`
	Key        string       `json:"key"`         // hex; kept before it is used
	LastSeq    uint64       `json:"last_seq"`    // highest record number the log has of the site
	MaxCounter uint64       `json:"max_counter"` // highest oid counter it has seen of the site
	Position   kml.Position `json:"position"`    // end of the log
}

// Batch is frozen records to be applied in order.
type Batch struct {
	ID      uint64
	Records []*kml.Record
}

// Contents are the small contents of a store, before the Batch with its record:
// an upload without a file of its own.
type Contents struct {
	Seq  uint64 // the record's number at its site
	Data []byte
}

// Status is what became of a record.
type Status uint8

// The outcomes of a record.
const (
	Applied   Status = 1 // Pos is where
	Duplicate Status = 2 // applied earlier, at Pos when that is known
	Conflict  Status = 3 // a base does not hold; Reason says which
	Refused   Status = 4 // Errno and Reason say why
)

// String is the status in a word.
func (s Status) String() string {
	switch s {
	case Applied:
		return "applied"
	case Duplicate:
		return "duplicate"
	case Conflict:
		return "conflict"
	case Refused:
		return "refused"
	}
	return fmt.Sprintf("status %d", uint8(s))
}

// Outcome is what became of one record of a batch.
type Outcome struct {
	Seq    uint64 // the record's number at its site
	Status Status
	Pos    kml.Position // Applied, Duplicate: where; else the end of the log it was held against
	Errno  uint32       // of Linux
	Reason string       // for people; at most 64 KiB - 1, what is longer is cut
}

// Result answers a Batch, an outcome for each record that was decided, in
// order.
type Result struct {
	ID       uint64
	Outcomes []Outcome
}

func (*Greeting) kind() Kind   { return KindGreeting }
func (*Failure) kind() Kind    { return KindFailure }
func (*Record) kind() Kind     { return KindRecord }
func (*RecordData) kind() Kind { return KindRecordData }
func (*Heartbeat) kind() Kind  { return KindHeartbeat }
func (*Changing) kind() Kind   { return KindChanging }
func (*Damaged) kind() Kind    { return KindDamaged }
func (*SnapBegin) kind() Kind  { return KindSnapBegin }
func (*Entry) kind() Kind      { return KindEntry }
func (*EntryData) kind() Kind  { return KindEntryData }
func (*SnapEnd) kind() Kind    { return KindSnapEnd }
func (*Hello) kind() Kind      { return KindHello }
func (*Welcome) kind() Kind    { return KindWelcome }
func (*Batch) kind() Kind      { return KindBatch }
func (*Result) kind() Kind     { return KindResult }
func (*Contents) kind() Kind   { return KindContents }

func appendJSON(b []byte, v any) ([]byte, error) {
	j, err := json.Marshal(v)
	return append(b, j...), err
}

func parseJSON(b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %w", ErrFrame, err)
	}
	return nil
}

func (m *Greeting) append(b []byte) ([]byte, error) { return appendJSON(b, m) }
func (m *Greeting) parse(b []byte) error            { return parseJSON(b, m) }
func (f *Failure) append(b []byte) ([]byte, error)  { return appendJSON(b, f) }
func (f *Failure) parse(b []byte) error             { return parseJSON(b, f) }
func (m *Hello) append(b []byte) ([]byte, error)    { return appendJSON(b, m) }
func (m *Hello) parse(b []byte) error               { return parseJSON(b, m) }
func (m *Welcome) append(b []byte) ([]byte, error)  { return appendJSON(b, m) }
func (m *Welcome) parse(b []byte) error             { return parseJSON(b, m) }

var le = binary.LittleEndian

// appendRecord appends a frozen record.
func appendRecord(b []byte, r *kml.Record) ([]byte, error) {
	b, _, err := kml.AppendRecord(b, r, 0)
	return b, err
}

// parseRecord takes a frozen record that must fill b.
func parseRecord(b []byte) (*kml.Record, error) {
	r, n, _, err := kml.ParseRecord(b, 0)
	if err == nil && n != len(b) {
		err = extra(len(b) - n)
	}
	return r, err
}

func extra(n int) error { return fmt.Errorf("%d bytes too many: %w", n, ErrFrame) }

// fixed checks that b has exactly n bytes.
func fixed(b []byte, n int) error {
	if len(b) != n {
		return fmt.Errorf("%d bytes, want %d: %w", len(b), n, ErrFrame)
	}
	return nil
}

// need checks that b has n bytes at least.
func need(b []byte, n int) error {
	if len(b) < n {
		return fmt.Errorf("%d bytes, want %d or more: %w", len(b), n, ErrFrame)
	}
	return nil
}

func (m *Record) append(b []byte) ([]byte, error) { return appendRecord(b, m.Record) }

func (m *Record) parse(b []byte) (err error) {
	m.Record, err = parseRecord(b)
	return err
}

func (m *RecordData) append(b []byte) ([]byte, error) {
	b, err := appendRecord(b, m.Record)
	return append(b, m.Data...), err
}

func (m *RecordData) parse(b []byte) error {
	r, n, _, err := kml.ParseRecord(b, 0)
	if err != nil {
		return err
	}
	m.Record, m.Data = r, append([]byte{}, b[n:]...)
	return nil
}

func (m *Heartbeat) append(b []byte) ([]byte, error) {
	b = le.AppendUint64(b, uint64(m.End))
	b = le.AppendUint64(b, uint64(m.Durable))
	return le.AppendUint64(b, uint64(m.Time)), nil
}

func (m *Heartbeat) parse(b []byte) error {
	if err := fixed(b, 24); err != nil {
		return err
	}
	m.End, m.Durable = kml.Position(le.Uint64(b)), kml.Position(le.Uint64(b[8:]))
	m.Time = int64(le.Uint64(b[16:]))
	return nil
}

func (m *Changing) append(b []byte) ([]byte, error) { return le.AppendUint64(b, uint64(m.OID)), nil }

func (m *Changing) parse(b []byte) error {
	if err := fixed(b, 8); err != nil {
		return err
	}
	m.OID = kml.OID(le.Uint64(b))
	return nil
}

func (m *Damaged) append(b []byte) ([]byte, error) {
	b = le.AppendUint64(b, uint64(m.OID))
	return le.AppendUint64(b, uint64(m.Version)), nil
}

func (m *Damaged) parse(b []byte) error {
	if err := fixed(b, 16); err != nil {
		return err
	}
	m.OID, m.Version = kml.OID(le.Uint64(b)), kml.Position(le.Uint64(b[8:]))
	return nil
}

func (m *SnapBegin) append(b []byte) ([]byte, error) {
	b = le.AppendUint64(b, uint64(m.Position))
	b = le.AppendUint64(b, uint64(m.OID))
	return le.AppendUint32(b, m.CRC), nil
}

func (m *SnapBegin) parse(b []byte) error {
	if err := fixed(b, 20); err != nil {
		return err
	}
	m.Position, m.OID = kml.Position(le.Uint64(b)), kml.OID(le.Uint64(b[8:]))
	m.CRC = le.Uint32(b[16:])
	return nil
}

func (m *Entry) append(b []byte) ([]byte, error) {
	b = le.AppendUint64(b, uint64(m.Version))
	b = le.AppendUint64(b, uint64(m.DataVersion))
	return appendRecord(b, m.Record)
}

func (m *Entry) parse(b []byte) (err error) {
	if err := need(b, 16); err != nil {
		return err
	}
	m.Version, m.DataVersion = kml.Position(le.Uint64(b)), kml.Position(le.Uint64(b[8:]))
	m.Record, err = parseRecord(b[16:])
	return err
}

func (m *EntryData) append(b []byte) ([]byte, error) {
	b, err := m.Entry.append(b)
	return append(b, m.Data...), err
}

func (m *EntryData) parse(b []byte) error {
	if err := need(b, 16); err != nil {
		return err
	}
	m.Version, m.DataVersion = kml.Position(le.Uint64(b)), kml.Position(le.Uint64(b[8:]))
	r, n, _, err := kml.ParseRecord(b[16:], 0)
	if err != nil {
		return err
	}
	m.Record, m.Data = r, append([]byte{}, b[16+n:]...)
	return nil
}

func (m *SnapEnd) append(b []byte) ([]byte, error) { return le.AppendUint64(b, m.Count), nil }

func (m *SnapEnd) parse(b []byte) error {
	if err := fixed(b, 8); err != nil {
		return err
	}
	m.Count = le.Uint64(b)
	return nil
}

func (m *Batch) append(b []byte) (_ []byte, err error) {
	b = le.AppendUint64(b, m.ID)
	for _, r := range m.Records {
		if b, err = appendRecord(b, r); err != nil {
			return b, err
		}
	}
	return b, nil
}

func (m *Batch) parse(b []byte) error {
	if err := need(b, 8); err != nil {
		return err
	}
	m.ID, b = le.Uint64(b), b[8:]
	for len(b) > 0 {
		r, n, _, err := kml.ParseRecord(b, 0)
		if err != nil {
			return fmt.Errorf("record %d of batch %d: %w", len(m.Records), m.ID, err)
		}
		m.Records = append(m.Records, r)
		b = b[n:]
	}
	return nil
}

// AppendBatch appends a Batch of records that are encoded already, byte for
// byte. Each must be whole and have a previous CRC of 0.
func AppendBatch(dst []byte, id uint64, frozen ...[]byte) ([]byte, error) {
	b := le.AppendUint64(beginFrame(dst, KindBatch), id)
	for _, f := range frozen {
		b = append(b, f...)
	}
	return endFrame(b, len(dst))
}

// AppendContents appends a Contents frame.
func AppendContents(dst []byte, seq uint64, data []byte) ([]byte, error) {
	b := le.AppendUint64(beginFrame(dst, KindContents), seq)
	return endFrame(append(b, data...), len(dst))
}

func (m *Contents) append(b []byte) ([]byte, error) {
	return append(le.AppendUint64(b, m.Seq), m.Data...), nil
}

func (m *Contents) parse(b []byte) error {
	if err := need(b, 8); err != nil {
		return err
	}
	m.Seq, m.Data = le.Uint64(b), append([]byte{}, b[8:]...)
	return nil
}

// AppendRaw appends a Record frame, or with data a RecordData frame, of a
// record as a kml.Reader hands it out. data nil is a Record.
func AppendRaw(dst []byte, raw kml.Raw, data []byte) ([]byte, error) {
	k := KindRecord
	if data != nil {
		k = KindRecordData
	}
	b := raw.AppendFrozen(beginFrame(dst, k))
	return endFrame(append(b, data...), len(dst))
}

const outcomeLen = 8 + 8 + 4 + 1 + 2

func (m *Result) append(b []byte) ([]byte, error) {
	b = le.AppendUint64(b, m.ID)
	for _, o := range m.Outcomes {
		reason := o.Reason[:min(len(o.Reason), 1<<16-1)]
		b = le.AppendUint64(b, o.Seq)
		b = le.AppendUint64(b, uint64(o.Pos))
		b = le.AppendUint32(b, o.Errno)
		b = append(b, byte(o.Status))
		b = le.AppendUint16(b, uint16(len(reason)))
		b = append(b, reason...)
	}
	return b, nil
}

func (m *Result) parse(b []byte) error {
	if err := need(b, 8); err != nil {
		return err
	}
	m.ID, b = le.Uint64(b), b[8:]
	for len(b) > 0 {
		if err := need(b, outcomeLen); err != nil {
			return err
		}
		o := Outcome{
			Seq:    le.Uint64(b),
			Pos:    kml.Position(le.Uint64(b[8:])),
			Errno:  le.Uint32(b[16:]),
			Status: Status(b[20]),
		}
		n := int(le.Uint16(b[21:]))
		b = b[outcomeLen:]
		if err := need(b, n); err != nil {
			return err
		}
		o.Reason, b = string(b[:n]), b[n:]
		m.Outcomes = append(m.Outcomes, o)
	}
	return nil
}
