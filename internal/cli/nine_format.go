package cli

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os/user"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"
)

// modeText is a mode as ls(1) prints it.
func modeText(m p9.FileMode) string {
	const types = "?pc?d?b?-?l?s???"
	b := []byte{types[m>>12&15]}
	for shift := 6; shift >= 0; shift -= 3 {
		for i, c := range "rwx" {
			if m>>shift&(4>>i) == 0 {
				c = '-'
			}
			b = append(b, byte(c))
		}
	}
	for _, s := range []struct {
		bit   p9.FileMode
		at    int
		lower byte
	}{{unix.S_ISUID, 3, 's'}, {unix.S_ISGID, 6, 's'}, {unix.S_ISVTX, 9, 't'}} {
		switch {
		case m&s.bit == 0:
		case b[s.at] == 'x':
			b[s.at] = s.lower
		default:
			b[s.at] = s.lower - 'a' + 'A'
		}
	}
	return string(b)
}

// typeText is the type of a file as stat(1) prints it.
func typeText(m p9.FileMode, size uint64) string {
	switch m & p9.FileModeMask {
	case unix.S_IFREG:
		if size == 0 {
			return "regular empty file"
		}
		return "regular file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symbolic link"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFCHR:
		return "character special file"
	case unix.S_IFBLK:
		return "block special file"
	}
	return "weird file"
}

// shortType is the type of a file in JSON.
func shortType(m p9.FileMode) string {
	switch m & p9.FileModeMask {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "folder"
	case unix.S_IFLNK:
		return "link"
	}
	return strings.Fields(typeText(m, 1))[0]
}

// isDevice says whether a mode is a device's.
func isDevice(m p9.FileMode) bool { return m.IsBlockDevice() || m.IsCharacterDevice() }

// sixMonths is how old a file may be for ls to print the time of day.
const sixMonths = 31556952 / 2 * time.Second

// lsTime is a time as ls -l prints it.
func lsTime(t, now time.Time) string {
	if age := now.Sub(t); age >= 0 && age < sixMonths {
		return t.Format("Jan _2 15:04")
	}
	return t.Format("Jan _2  2006")
}

func timeOf(sec, nsec uint64) time.Time { return time.Unix(int64(sec), int64(nsec)) }

// statTime is a time as stat(1) prints it.
func statTime(sec, nsec uint64) string {
	return timeOf(sec, nsec).Format("2006-01-02 15:04:05.000000000 -0700")
}

// ids are names of users and groups of this machine, kept.
type ids struct {
	numbers bool // no names
	users   map[uint32]string
	groups  map[uint32]string
}

func (i *ids) user(id uint32) string {
	return i.name(&i.users, id, func(s string) (string, error) {
		u, err := user.LookupId(s)
		if err != nil {
			return "", err
		}
		return u.Username, nil
	})
}

func (i *ids) group(id uint32) string {
	return i.name(&i.groups, id, func(s string) (string, error) {
		g, err := user.LookupGroupId(s)
		if err != nil {
			return "", err
		}
		return g.Name, nil
	})
}

func (i *ids) name(known *map[uint32]string, id uint32, look func(string) (string, error)) string {
	s := strconv.FormatUint(uint64(id), 10)
	if i.numbers {
		return s
	}
	if name, ok := (*known)[id]; ok {
		return name
	}
	if name, err := look(s); err == nil {
		s = name
	}
	if *known == nil {
		*known = map[uint32]string{}
	}
	(*known)[id] = s
	return s
}

// shown is a name for a terminal, where nothing in it may be taken for a
// command.
func shown(name string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, name)
}

// jsonName is bytes in JSON: a string when they are UTF-8, else {"hex": ...}.
type jsonName string

// MarshalJSON implements json.Marshaler.
func (s jsonName) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(s)) {
		return json.Marshal(string(s))
	}
	return json.Marshal(map[string]string{"hex": hex.EncodeToString([]byte(s))})
}

// jsonFile is a file in JSON. Times are in RFC 3339; what the server does not
// tell is left out.
type jsonFile struct {
	Path    jsonName `json:"path"`
	Type    string   `json:"type"`
	Mode    string   `json:"mode,omitempty"`
	Links   uint64   `json:"links,omitempty"`
	UID     *uint32  `json:"uid,omitempty"`
	GID     *uint32  `json:"gid,omitempty"`
	Size    *uint64  `json:"size,omitempty"`
	Blocks  *uint64  `json:"blocks,omitempty"`
	Device  string   `json:"device,omitempty"`
	Atime   string   `json:"atime,omitempty"`
	Mtime   string   `json:"mtime,omitempty"`
	Ctime   string   `json:"ctime,omitempty"`
	Btime   string   `json:"btime,omitempty"`
	Gen     *uint64  `json:"gen,omitempty"`
	Version *uint64  `json:"data_version,omitempty"`
	QID     string   `json:"qid,omitempty"`
	Target  jsonName `json:"target,omitempty"`
}

// jsonOf is a file in JSON, with what is known of it.
func jsonOf(path string, a *attrs, target string) jsonFile {
	j := jsonFile{Path: jsonName(path), Type: shortType(a.Mode), Target: jsonName(target), QID: qidText(a.qid)}
	j.Mode = fmt.Sprintf("%04o", uint32(a.Mode&0o7777))
	uid, gid := uint32(a.UID), uint32(a.GID)
	stamp := func(known bool, sec, nsec uint64) string {
		if !known {
			return ""
		}
		return timeOf(sec, nsec).UTC().Format(time.RFC3339Nano)
	}
	if a.valid.NLink {
		j.Links = uint64(a.NLink)
	}
	if a.valid.UID {
		j.UID = &uid
	}
	if a.valid.GID {
		j.GID = &gid
	}
	if a.valid.Size {
		j.Size = &a.Size
	}
	if a.valid.Blocks {
		j.Blocks = &a.Blocks
	}
	if isDevice(a.Mode) {
		j.Device = fmt.Sprintf("%d:%d", unix.Major(uint64(a.RDev)), unix.Minor(uint64(a.RDev)))
	}
	j.Atime = stamp(a.valid.ATime, a.ATimeSeconds, a.ATimeNanoSeconds)
	j.Mtime = stamp(a.valid.MTime, a.MTimeSeconds, a.MTimeNanoSeconds)
	j.Ctime = stamp(a.valid.CTime, a.CTimeSeconds, a.CTimeNanoSeconds)
	j.Btime = stamp(a.valid.BTime, a.BTimeSeconds, a.BTimeNanoSeconds)
	if a.valid.Gen {
		j.Gen = &a.Gen
	}
	if a.valid.DataVersion {
		j.Version = &a.DataVersion
	}
	return j
}

// qidText is a QID: type, path and version in hex.
func qidText(q p9.QID) string { return fmt.Sprintf("%02x.%x.%x", uint8(q.Type), q.Path, q.Version) }
