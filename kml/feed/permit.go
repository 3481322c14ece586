package feed

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mezzofs/mezzo/kml"
)

// Verb is what a line that a client writes into permit asks for.
type Verb string

// The verbs.
const (
	AskAt     Verb = "at"     // where the log ends; renews what the client holds
	AskLock   Verb = "lock"   // a lock of a file
	AskTest   Verb = "test"   // what is in a lock's way
	AskUnlock Verb = "unlock" // give up all locks of an owner on a file
	AskCancel Verb = "cancel" // wait no longer for what was asked under another tag
	AskTake   Verb = "take"   // a lease
	AskFree   Verb = "free"   // give a lease up
	AskBye    Verb = "bye"    // give everything up
	AskSite   Verb = "site"   // say whose leases they are, with the key of the session of reint
)

// Lease is a kind of lease.
type Lease string

// The kinds of lease.
const (
	LeaseNames Lease = "names" // nobody else makes or moves names in a folder
	LeaseWrite Lease = "write" // nobody else changes anything in a subtree
)

// LockKind is the space that a lock is in.
type LockKind string

// The kinds of lock.
const (
	LockPOSIX LockKind = "posix" // fcntl(2)
	LockFlock LockKind = "flock" // flock(2): the range is the whole file
)

// LockType is what a lock is for.
type LockType string

// The types of lock.
const (
	LockRead  LockType = "read"
	LockWrite LockType = "write"
	LockNone  LockType = "none" // gives up a range
)

// FileLock is a lock as permit speaks of it. End is inclusive, ^0 the end of the
// file.
type FileLock struct {
	Kind       LockKind
	Type       LockType
	Start, End uint64
	PID        uint32
}

// Ask is one line of a client to permit. Which fields count depends on the verb.
type Ask struct {
	Tag   uint64 // the client's own number, not 0; the answer has it
	Verb  Verb
	OID   kml.OID
	Of    uint64 // AskCancel: a tag
	Lease Lease  // AskTake, AskFree
	Owner uint64 // of a lock, among those of the client
	Lock  FileLock
	Wait  bool       // AskLock: until the lock is free
	Site  kml.SiteID // AskSite
	Key   string     // AskSite
}

// String is the line, with its newline:
//
//	TAG at
//	TAG lock OID OWNER PID posix|flock read|write|none START END wait|try
//	TAG test OID OWNER PID posix|flock read|write START END
//	TAG unlock OID OWNER
//	TAG cancel TAG
//	TAG take names|write OID
//	TAG free names|write OID
//	TAG bye
//	TAG site SITE KEY
//
// An OID is SITE:COUNTER; all numbers are decimal.
func (a Ask) String() string {
	head := fmt.Sprintf("%d %s", a.Tag, a.Verb)
	l := a.Lock
	switch a.Verb {
	case AskLock:
		wait := "try"
		if a.Wait {
			wait = "wait"
		}
		return fmt.Sprintf("%s %s %d %d %s %s %d %d %s\n", head, a.OID, a.Owner, l.PID, l.Kind, l.Type, l.Start, l.End, wait)
	case AskTest:
		return fmt.Sprintf("%s %s %d %d %s %s %d %d\n", head, a.OID, a.Owner, l.PID, l.Kind, l.Type, l.Start, l.End)
	case AskSite:
		return fmt.Sprintf("%s %d %s\n", head, a.Site, a.Key)
	case AskUnlock:
		return fmt.Sprintf("%s %s %d\n", head, a.OID, a.Owner)
	case AskCancel:
		return fmt.Sprintf("%s %d\n", head, a.Of)
	case AskTake, AskFree:
		return fmt.Sprintf("%s %s %s\n", head, a.Lease, a.OID)
	}
	return head + "\n"
}

// ParseAsk reads such a line; the newline may be missing.
func ParseAsk(line string) (Ask, error) {
	f, err := fields(line)
	if err != nil {
		return Ask{}, err
	}
	p := parser{f: f}
	a := Ask{Tag: p.number(64), Verb: Verb(p.word())}
	if a.Tag == 0 {
		p.bad = true
	}
	switch a.Verb {
	case AskAt, AskBye:
	case AskLock, AskTest:
		a.OID, a.Owner = p.oid(), p.number(64)
		a.Lock = p.lock()
		if a.Verb == AskLock {
			a.Wait = p.one("wait", "try") == "wait"
		}
		if a.Verb == AskTest && a.Lock.Type == LockNone {
			p.bad = true
		}
	case AskSite:
		a.Site, a.Key = kml.SiteID(p.number(20)), p.word()
	case AskUnlock:
		a.OID, a.Owner = p.oid(), p.number(64)
	case AskCancel:
		a.Of = p.number(64)
	case AskTake, AskFree:
		a.Lease, a.OID = Lease(p.one(string(LeaseNames), string(LeaseWrite))), p.oid()
	default:
		p.bad = true
	}
	if !p.end() {
		return Ask{}, bad(line)
	}
	return a, nil
}

// Say is what a line of permit to a client says.
type Say string

// What permit says.
const (
	SayOK     Say = "ok"     // done; what a lock or lease protects is as of Pos, or older
	SayHeld   Say = "held"   // Lock is in the way of what was tested
	SayNo     Say = "no"     // Errno says why
	SayRecall Say = "recall" // Lease of OID is wanted: flush and give it up
	SayGone   Say = "gone"   // Lease of OID was taken away
)

// Reply is one line of permit to a client. Answers have the Tag of what was
// asked; what comes unasked has 0.
type Reply struct {
	Tag   uint64
	Say   Say
	Pos   kml.Position  // SayOK: the end of the log
	For   time.Duration // SayOK: what the client holds is its own so long, whole ms, from when it asked
	Errno syscall.Errno
	Lock  FileLock
	Lease Lease
	OID   kml.OID
}

// String is the line, with its newline:
//
//	TAG ok POSITION MILLISECONDS
//	TAG held PID posix|flock read|write START END
//	TAG no ERRNO
//	0 recall names|write OID
//	0 gone names|write OID
func (r Reply) String() string {
	head := fmt.Sprintf("%d %s", r.Tag, r.Say)
	switch r.Say {
	case SayOK:
		return fmt.Sprintf("%s %s %d\n", head, r.Pos, r.For.Milliseconds())
	case SayHeld:
		l := r.Lock
		return fmt.Sprintf("%s %d %s %s %d %d\n", head, l.PID, l.Kind, l.Type, l.Start, l.End)
	case SayNo:
		return fmt.Sprintf("%s %d\n", head, int(r.Errno))
	}
	return fmt.Sprintf("%s %s %s\n", head, r.Lease, r.OID)
}

// ParseReply reads such a line; the newline may be missing.
func ParseReply(line string) (Reply, error) {
	f, err := fields(line)
	if err != nil {
		return Reply{}, err
	}
	p := parser{f: f}
	r := Reply{Tag: p.number(64), Say: Say(p.word())}
	switch r.Say {
	case SayOK:
		if r.Pos, err = kml.ParsePosition(p.word()); err != nil {
			p.bad = true
		}
		r.For = time.Duration(p.number(32)) * time.Millisecond
	case SayHeld:
		r.Lock = p.lock()
	case SayNo:
		r.Errno = syscall.Errno(p.number(31))
	case SayRecall, SayGone:
		r.Lease, r.OID = Lease(p.one(string(LeaseNames), string(LeaseWrite))), p.oid()
	default:
		p.bad = true
	}
	if !p.end() {
		return Reply{}, bad(line)
	}
	return r, nil
}

func fields(line string) ([]string, error) {
	if len(line) > MaxLine {
		return nil, bad(line)
	}
	return strings.Split(strings.TrimSuffix(line, "\n"), " "), nil
}

// parser takes words off a line.
type parser struct {
	f   []string
	bad bool
}

func (p *parser) word() string {
	if len(p.f) == 0 {
		p.bad = true
		return ""
	}
	w := p.f[0]
	p.f = p.f[1:]
	return w
}

func (p *parser) one(of ...string) string {
	w := p.word()
	for _, o := range of {
		if w == o {
			return w
		}
	}
	p.bad = true
	return ""
}

func (p *parser) number(bits int) uint64 {
	w := p.word()
	n, err := strconv.ParseUint(w, 10, bits)
	if err != nil || strconv.FormatUint(n, 10) != w {
		p.bad = true
	}
	return n
}

func (p *parser) oid() kml.OID {
	o, err := kml.ParseOID(p.word())
	if err != nil {
		p.bad = true
	}
	return o
}

func (p *parser) lock() FileLock {
	l := FileLock{PID: uint32(p.number(32)), Kind: LockKind(p.one(string(LockPOSIX), string(LockFlock))),
		Type: LockType(p.one(string(LockRead), string(LockWrite), string(LockNone))), Start: p.number(64), End: p.number(64)}
	if l.End < l.Start {
		p.bad = true
	}
	return l
}

func (p *parser) end() bool { return !p.bad && len(p.f) == 0 }
