package tree

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/glob"
)

// Sum is a BLAKE3 hash; zero is of nothing.
type Sum [32]byte

func (s Sum) text() string {
	if s == (Sum{}) {
		return "-"
	}
	return base64.RawURLEncoding.EncodeToString(s[:])
}

func parseSum(text string) (s Sum, err error) {
	if text == "-" {
		return s, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(b) != len(s) {
		return s, errDigest
	}
	return Sum(b), nil
}

var errDigest = errors.New("not an entry of a digest")

// DigestEntry is what a name holds, with a hash of its contents: two of the same
// Sum are the same, with all that is below. On a master it is what the log says,
// and the bytes of the disk; on a replica it is what the disk says, in the
// master's words: an owner that is as it should be here is the master's.
type DigestEntry struct {
	Name    string
	Mode    uint32 // type and permissions
	UID     uint32
	GID     uint32
	Nlink   uint32 // names of it that are kept; 1 for a folder
	Rdev    uint64
	Size    uint64 // of a file
	Mtime   int64  // ns
	Target  string // of a symbolic link
	Xattrs  Sum
	Content Sum // of a file's bytes; of a folder's entries
	// Busy: the contents changed while they were read, or are on their way;
	// Content says nothing.
	Busy bool

	// What follows does not count for the Sum.
	OID         kml.OID // 0: nothing that is known
	Version     kml.Position
	DataVersion kml.Position
	Ref         int64 // of a folder: its entries, for Digest.List
}

// IsDir reports whether it is a folder.
func (e *DigestEntry) IsDir() bool { return e.Mode&unix.S_IFMT == unix.S_IFDIR }

// Sum is the hash of all that counts but the name.
func (e *DigestEntry) Sum() Sum {
	le := binary.LittleEndian
	b := make([]byte, 0, 256)
	b = le.AppendUint32(le.AppendUint32(le.AppendUint32(le.AppendUint32(b, e.Mode), e.UID), e.GID), e.Nlink)
	b = le.AppendUint64(le.AppendUint64(le.AppendUint64(b, e.Rdev), e.Size), uint64(e.Mtime))
	b = append(append(b, e.Xattrs[:]...), e.Content[:]...)
	if e.Busy {
		b = append(b, 'b')
	}
	return blake3.Sum256(append(b, e.Target...))
}

// AppendText appends the entry as a line, without its end.
func (e *DigestEntry) AppendText(b []byte) []byte {
	busy := "-"
	if e.Busy {
		busy = "busy"
	}
	b = fmt.Appendf(b, "%o %d %d %d %d %d %d %s %s %s %v %d %d %d ", e.Mode, e.UID, e.GID, e.Nlink, e.Rdev, e.Size, e.Mtime,
		e.Xattrs.text(), e.Content.text(), busy, e.OID, uint64(e.Version), uint64(e.DataVersion), e.Ref)
	b = strconv.AppendQuote(b, e.Name)
	if e.Target != "" {
		b = strconv.AppendQuote(append(b, ' '), e.Target)
	}
	return b
}

// ParseDigestEntry reads a line of AppendText.
func ParseDigestEntry(line string) (e *DigestEntry, err error) {
	const fields = 14
	e = new(DigestEntry)
	f := strings.SplitN(line, " ", fields+1)
	if len(f) != fields+1 {
		return nil, errDigest
	}
	num := func(i, base, bits int) uint64 {
		v, bad := strconv.ParseUint(f[i], base, bits)
		if bad != nil {
			err = errDigest
		}
		return v
	}
	e.Mode, e.UID, e.GID, e.Nlink = uint32(num(0, 8, 32)), uint32(num(1, 10, 32)), uint32(num(2, 10, 32)), uint32(num(3, 10, 32))
	e.Rdev, e.Size = num(4, 10, 64), num(5, 10, 64)
	mtime, bad := strconv.ParseInt(f[6], 10, 64)
	e.Mtime = mtime
	var bad2, bad3, bad4 error
	e.Xattrs, bad2 = parseSum(f[7])
	e.Content, bad3 = parseSum(f[8])
	e.Busy = f[9] == "busy"
	e.OID, bad4 = kml.ParseOID(f[10])
	e.Version, e.DataVersion, e.Ref = kml.Position(num(11, 10, 64)), kml.Position(num(12, 10, 64)), int64(num(13, 10, 63))
	if err := errors.Join(err, bad, bad2, bad3, bad4); err != nil {
		return nil, fmt.Errorf("%q: %w", line, errDigest)
	}
	name, err := strconv.QuotedPrefix(f[fields])
	if err == nil {
		e.Name, err = strconv.Unquote(name)
	}
	if rest := strings.TrimPrefix(f[fields], name); err == nil && rest != "" {
		e.Target, err = strconv.Unquote(strings.TrimPrefix(rest, " "))
	}
	if err != nil {
		return nil, fmt.Errorf("%q: %w", line, errDigest)
	}
	return e, nil
}

// DigestOptions say what is looked at. The zero value is everything.
type DigestOptions struct {
	Choose *Choice // what counts; nil is all
	// UserXattrs leaves out extended attributes that a process that is not root
	// may not set.
	UserXattrs bool
}

// String is the options as words, for ParseDigestOptions.
func (o DigestOptions) String() string {
	var b []byte
	if o.UserXattrs {
		b = append(b, " xattrs user"...)
	}
	if c := o.Choose; c != nil {
		for _, g := range c.Only {
			b = strconv.AppendQuote(append(b, " only "...), g.String())
		}
		for _, g := range c.Exclude {
			b = strconv.AppendQuote(append(b, " exclude "...), g.String())
		}
		if c.MaxSize > 0 {
			b = fmt.Appendf(b, " max %d", c.MaxSize)
		}
	}
	return strings.TrimPrefix(string(b), " ")
}

// ParseDigestOptions reads what String makes.
func ParseDigestOptions(text string) (o DigestOptions, err error) {
	c := &Choice{}
	for text = strings.TrimSpace(text); text != ""; text = strings.TrimSpace(text) {
		word, rest, _ := strings.Cut(text, " ")
		value, _, _ := strings.Cut(rest, " ")
		if word == "only" || word == "exclude" {
			if value, err = strconv.QuotedPrefix(rest); err != nil {
				return o, fmt.Errorf("%q: %w", text, err)
			}
			plain, err := strconv.Unquote(value)
			if err != nil {
				return o, fmt.Errorf("%q: %w", text, err)
			}
			g, err := glob.Parse(plain)
			if err != nil {
				return o, err
			}
			if word == "only" {
				c.Only = append(c.Only, g)
			} else {
				c.Exclude = append(c.Exclude, g)
			}
		} else if word == "xattrs" && value == "user" {
			o.UserXattrs = true
		} else if word == "max" {
			if c.MaxSize, err = strconv.ParseUint(value, 10, 63); err != nil {
				return o, err
			}
		} else {
			return o, fmt.Errorf("%q says nothing of a digest: %w", text, unix.EINVAL)
		}
		text = rest[len(value):]
	}
	if len(c.Only)+len(c.Exclude) > 0 || c.MaxSize > 0 {
		o.Choose = c
	}
	return o, nil
}

// DigestChoice is what a digest of this tree can tell: of a replica what is kept
// of the master's.
func (t *Tree) DigestChoice() DigestOptions {
	if t.replica == nil {
		return DigestOptions{}
	}
	return DigestOptions{Choose: t.replica.choice.Load(), UserXattrs: !t.root}
}

// DigestOf is what a name holds now; nil when nothing. at is a position as of which
// that is, or a later one; known says that the index has the name all the same.
func (t *Tree) DigestOf(ctx context.Context, parent kml.OID, name string, o DigestOptions) (e *DigestEntry, at kml.Position, known bool, err error) {
	at = t.log.End()
	if t.replica != nil {
		at = t.replica.Applied()
	}
	g := &digester{t: t, o: o, ctx: ctx}
	_, _, known = t.index.Child(parent, name)
	path := name
	if parent == 0 {
		name, path, known = "", "", true // the root itself
	} else if parent != kml.RootOID {
		up, err := t.PathOf(parent)
		if errors.Is(err, ErrNotFound) {
			return nil, at, known, nil
		}
		if err != nil {
			return nil, at, known, err
		}
		path = strings.TrimPrefix(up, "/") + "/" + name
	}
	e, err = g.entry(Name{parent, name}, path)
	if err == nil && e != nil && !e.IsDir() {
		g.contents(Name{parent, name}, e)
	}
	return e, at, known, err
}
