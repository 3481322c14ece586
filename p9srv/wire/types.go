package wire

import "strconv"

// Type is the type byte of a message. T-messages (requests) are even, their
// R-messages (answers) one higher.
type Type uint8

// The message types. The first block is 9P2000.L's own; the last exists only
// in 9P2000 and 9P2000.u, which share the middle with 9P2000.L.
const (
	TypeTlerror      Type = 6 // never sent
	TypeRlerror      Type = 7
	TypeTstatfs      Type = 8
	TypeRstatfs      Type = 9
	TypeTlopen       Type = 12
	TypeRlopen       Type = 13
	TypeTlcreate     Type = 14
	TypeRlcreate     Type = 15
	TypeTsymlink     Type = 16
	TypeRsymlink     Type = 17
	TypeTmknod       Type = 18
	TypeRmknod       Type = 19
	TypeTrename      Type = 20
	TypeRrename      Type = 21
	TypeTreadlink    Type = 22
	TypeRreadlink    Type = 23
	TypeTgetattr     Type = 24
	TypeRgetattr     Type = 25
	TypeTsetattr     Type = 26
	TypeRsetattr     Type = 27
	TypeTxattrwalk   Type = 30
	TypeRxattrwalk   Type = 31
	TypeTxattrcreate Type = 32
	TypeRxattrcreate Type = 33
	TypeTreaddir     Type = 40
	TypeRreaddir     Type = 41
	TypeTfsync       Type = 50
	TypeRfsync       Type = 51
	TypeTlock        Type = 52
	TypeRlock        Type = 53
	TypeTgetlock     Type = 54
	TypeRgetlock     Type = 55
	TypeTlink        Type = 70
	TypeRlink        Type = 71
	TypeTmkdir       Type = 72
	TypeRmkdir       Type = 73
	TypeTrenameat    Type = 74
	TypeRrenameat    Type = 75
	TypeTunlinkat    Type = 76
	TypeRunlinkat    Type = 77

	TypeTversion Type = 100
	TypeRversion Type = 101
	TypeTauth    Type = 102
	TypeRauth    Type = 103
	TypeTattach  Type = 104
	TypeRattach  Type = 105
	TypeTflush   Type = 108
	TypeRflush   Type = 109
	TypeTwalk    Type = 110
	TypeRwalk    Type = 111
	TypeTread    Type = 116
	TypeRread    Type = 117
	TypeTwrite   Type = 118
	TypeRwrite   Type = 119
	TypeTclunk   Type = 120
	TypeRclunk   Type = 121
	TypeTremove  Type = 122
	TypeRremove  Type = 123

	TypeTerror  Type = 106 // never sent
	TypeRerror  Type = 107
	TypeTopen   Type = 112
	TypeRopen   Type = 113
	TypeTcreate Type = 114
	TypeRcreate Type = 115
	TypeTstat   Type = 124
	TypeRstat   Type = 125
	TypeTwstat  Type = 126
	TypeRwstat  Type = 127
)

// IsRequest says whether t is a T-message's type number.
func (t Type) IsRequest() bool { return t&1 == 0 }

// String is the name as in the manuals, like "Twalk", or "type 99".
func (t Type) String() string {
	if s := typeName(t); s != "" {
		return s
	}
	return "type " + strconv.Itoa(int(t))
}

func typeName(t Type) string {
	base := ""
	switch t &^ 1 {
	case TypeTlerror:
		base = "lerror"
	case TypeTstatfs:
		base = "statfs"
	case TypeTlopen:
		base = "lopen"
	case TypeTlcreate:
		base = "lcreate"
	case TypeTsymlink:
		base = "symlink"
	case TypeTmknod:
		base = "mknod"
	case TypeTrename:
		base = "rename"
	case TypeTreadlink:
		base = "readlink"
	case TypeTgetattr:
		base = "getattr"
	case TypeTsetattr:
		base = "setattr"
	case TypeTxattrwalk:
		base = "xattrwalk"
	case TypeTxattrcreate:
		base = "xattrcreate"
	case TypeTreaddir:
		base = "readdir"
	case TypeTfsync:
		base = "fsync"
	case TypeTlock:
		base = "lock"
	case TypeTgetlock:
		base = "getlock"
	case TypeTlink:
		base = "link"
	case TypeTmkdir:
		base = "mkdir"
	case TypeTrenameat:
		base = "renameat"
	case TypeTunlinkat:
		base = "unlinkat"
	case TypeTversion:
		base = "version"
	case TypeTauth:
		base = "auth"
	case TypeTattach:
		base = "attach"
	case TypeTerror:
		base = "error"
	case TypeTflush:
		base = "flush"
	case TypeTwalk:
		base = "walk"
	case TypeTopen:
		base = "open"
	case TypeTcreate:
		base = "create"
	case TypeTread:
		base = "read"
	case TypeTwrite:
		base = "write"
	case TypeTclunk:
		base = "clunk"
	case TypeTremove:
		base = "remove"
	case TypeTstat:
		base = "stat"
	case TypeTwstat:
		base = "wstat"
	default:
		return ""
	}
	if t.IsRequest() {
		return "T" + base
	}
	return "R" + base
}

// Tag numbers a request until its answer. NoTag belongs to Tversion.
type Tag uint16

// NoTag is the tag of Tversion.
const NoTag Tag = 0xffff

// FID is a client's number for a file. NoFID stands for "none".
type FID uint32

// NoFID is the afid of an attach without authentication.
const NoFID FID = 0xffffffff

// The dialects, as Tversion and Rversion name them.
const (
	Version9P2000  = "9P2000"
	Version9P2000U = "9P2000.u"
	Version9P2000L = "9P2000.L"
	VersionUnknown = "unknown"
)

// Sizes, in bytes.
const (
	HeaderSize   = 7                   // size[4] type[1] tag[2]
	ReadOverhead = HeaderSize + 4      // what an Rread or Rreaddir has before its data
	IOOverhead   = 24                  // what 9P keeps free for the header of any read or write (IOHDRSZ)
	QIDSize      = 13                  // type[1] version[4] path[8]
	direntFixed  = QIDSize + 8 + 1 + 2 // a Rreaddir entry without its name
	MinMsize     = 4096                // smallest msize that Linux clients offer
	MaxWalk      = 16                  // names in one Twalk (MAXWELEM)
	MaxName      = 255                 // bytes of a file name on Linux
	maxString    = 1<<16 - 1           // bytes of any string on the wire
)

// Flags of Tunlinkat.
const UnlinkRemoveDir = 0x200 // AT_REMOVEDIR

// Types of a folder's entry on the wire, as in readdir(3)'s d_type.
const (
	DTUnknown uint8 = 0
	DTFifo    uint8 = 1
	DTChar    uint8 = 2
	DTDir     uint8 = 4
	DTBlock   uint8 = 6
	DTRegular uint8 = 8
	DTLink    uint8 = 10
	DTSocket  uint8 = 12
)
