package tree

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/mezzofs/mezzo/kml"
)

// OwnerMap says which owners and groups objects get in a replica, by those they
// have at the master. The first rule that fits counts; without one a number stays.
// It is the owners of files alone: numbers inside of ACLs stay.
type OwnerMap struct {
	UIDs, GIDs []IDRule
}

// IDRule gives the numbers from First to Last, both among them, another one.
type IDRule struct {
	First, Last uint32
	To          uint32
}

// Add adds a rule, written "uid:FROM=TO" or "gid:FROM=TO". FROM is a number, a
// range "N-M", "*" for any, or a name of this host's; TO is a number or a name of
// this host's.
func (m *OwnerMap) Add(text string) error {
	kind, rest, ok := strings.Cut(text, ":")
	from, to, ok2 := strings.Cut(rest, "=")
	group := kind == "gid"
	if !ok || !ok2 || from == "" || to == "" || kind != "uid" && !group {
		return fmt.Errorf("%q is no rule: want uid:FROM=TO or gid:FROM=TO", text)
	}
	var r IDRule
	var err error
	first, last, ranged := strings.Cut(from, "-")
	switch {
	case from == "*":
		r.Last = ^uint32(0)
	case ranged && digits(first) && digits(last):
		if r.First, err = ownerID(first, group); err == nil {
			r.Last, err = ownerID(last, group)
		}
		if err == nil && r.First > r.Last {
			err = fmt.Errorf("%s: the range is empty", from)
		}
	default:
		r.First, err = ownerID(from, group)
		r.Last = r.First
	}
	if err == nil {
		r.To, err = ownerID(to, group)
	}
	if err != nil {
		return fmt.Errorf("%q: %w", text, err)
	}
	if group {
		m.GIDs = append(m.GIDs, r)
	} else {
		m.UIDs = append(m.UIDs, r)
	}
	return nil
}

func digits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// ownerID is the number of a user or group, which may be named.
func ownerID(text string, group bool) (uint32, error) {
	if !digits(text) {
		var err error
		if group {
			var g *user.Group
			if g, err = user.LookupGroup(text); err == nil {
				text = g.Gid
			}
		} else {
			var u *user.User
			if u, err = user.Lookup(text); err == nil {
				text = u.Uid
			}
		}
		if err != nil {
			return 0, err
		}
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || uint32(n) == ^uint32(0) {
		return 0, fmt.Errorf("%s is no number of a user or group", text)
	}
	return uint32(n), nil
}

// String is the rules as Add reads them, a line each.
func (m *OwnerMap) String() string {
	if m == nil {
		return ""
	}
	var b []byte
	for _, l := range []struct {
		kind  string
		rules []IDRule
	}{{"uid", m.UIDs}, {"gid", m.GIDs}} {
		for _, r := range l.rules {
			switch {
			case r.First == 0 && r.Last == ^uint32(0):
				b = fmt.Appendf(b, "%s:*=%d\n", l.kind, r.To)
			default:
				b = fmt.Appendf(b, "%s:%d-%d=%d\n", l.kind, r.First, r.Last, r.To)
			}
		}
	}
	return string(b)
}

func mapID(rules []IDRule, id uint32) uint32 {
	for _, r := range rules {
		if id >= r.First && id <= r.Last {
			return r.To
		}
	}
	return id
}

// ownersFile is the map in the state folder, as OwnerMap.String makes it.
const ownersFile = "owners"

// mapOwners takes a map, or with same the one that was taken last. A new one
// counts for what is in the directory too: that is compared anew.
func (r *Replica) mapOwners(m *OwnerMap, same bool) error {
	path := r.t.state.Path(ownersFile)
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if same {
		m = new(OwnerMap)
		for line := range strings.Lines(string(b)) {
			if err := m.Add(strings.TrimSuffix(line, "\n")); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
	} else if string(b) != m.String() {
		if err := errors.Join(r.startOver(), renameio.WriteFile(path, []byte(m.String()), 0o600)); err != nil {
			return err
		}
	}
	if m != nil {
		r.owners = *m
	}
	return nil
}

// ownerHere is which owner and group an object has in this directory, as far as
// this process may give files away.
func (r *Replica) ownerHere(a kml.Attr) (uid, gid uint32) {
	if !r.t.root {
		return r.uid, r.gid
	}
	return mapID(r.owners.UIDs, a.UID), mapID(r.owners.GIDs, a.GID)
}

// differing is in which attributes an object is to be set that has others than
// want. A new owner takes its set-id bits, so the mode goes with that.
func differing(have, want kml.Attr) kml.AttrMask {
	m := changed(have, want)
	if m&(kml.MaskUID|kml.MaskGID) != 0 {
		m |= kml.MaskMode
	}
	return m
}

// here is attributes as an object is given them in this directory. Not run as
// root, it is tried to give files to their owners all the same: a process may
// have the right to.
func (r *Replica) here(a kml.Attr) kml.Attr {
	a.UID, a.GID = mapID(r.owners.UIDs, a.UID), mapID(r.owners.GIDs, a.GID)
	return a
}
