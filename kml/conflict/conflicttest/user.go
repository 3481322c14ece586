package conflicttest

import (
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/mezzofs/mezzo/kml"
)

// User makes random operations at clients, and knows which contents nobody may
// miss: those that were written, and were not replaced or removed by somebody who
// had them before his eyes.
type User struct {
	Rand *rand.Rand
	// Salt is added to attributes, so that those of two users differ.
	Salt   int
	n      int
	Wanted map[string]bool // to be made by the caller
}

func (u *User) path(c *Client) string {
	var paths []string
	for oid := range c.View.Objects {
		if oid != 1 {
			paths = append(paths, c.View.Path(oid))
		}
	}
	slices.Sort(paths)
	if len(paths) == 0 || u.Rand.IntN(4) == 0 {
		return u.fresh(c)
	}
	return paths[u.Rand.IntN(len(paths))]
}

// fresh is a path of few, in a folder there is.
func (u *User) fresh(c *Client) string {
	dirs := []string{""}
	for oid := range c.View.Objects {
		if oid != 1 && c.View.isDir(oid) {
			dirs = append(dirs, c.View.Path(oid)+"/")
		}
	}
	slices.Sort(dirs)
	return dirs[u.Rand.IntN(len(dirs))] + string(rune('a'+u.Rand.IntN(4)))
}

// Act makes an operation, and says which, or nil when it could not be made.
func (u *User) Act(c *Client) (Op, error) {
	u.n++
	data := "w" + strconv.Itoa(u.n) + "."
	kinds := []string{"create", "create", "mkdir", "symlink", "write", "write", "write", "unlink", "rmdir", "rename", "rename", "rename", "link", "chmod", "setxattr", "removexattr", "exchange"}
	op := Op{kinds[u.Rand.IntN(len(kinds))]}
	if op[0] == "removexattr" && u.Salt != 0 {
		op[0] = "setxattr" // no attribute is a value that all share
	}
	switch op[0] {
	case "create":
		op = append(op, u.fresh(c), data)
	case "mkdir":
		op = append(op, u.fresh(c))
	case "symlink":
		op = append(op, u.fresh(c), "to"+strconv.Itoa(10*u.Salt+u.Rand.IntN(3)))
	case "write":
		op = append(op, u.path(c), data)
	case "unlink", "rmdir":
		op = append(op, u.path(c))
	case "rename", "link", "exchange":
		op = append(op, u.path(c), u.path(c))
	case "chmod":
		op = append(op, u.path(c), strconv.FormatInt(int64(0o600+8*u.Salt+u.Rand.IntN(8)), 8))
	default:
		op = append(op, u.path(c), "user.x", strconv.Itoa(10*u.Salt+u.Rand.IntN(3)))
	}
	done, err := u.Play(c, op)
	if !done {
		return nil, err
	}
	return op, nil
}

// Play makes a given operation; done is false when it could not be made.
func (u *User) Play(c *Client, op Op) (done bool, err error) {
	before, names := contents(c.View), maps.Clone(c.View.Names)
	if !possible(c, op) {
		return false, nil
	}
	if err := c.Do(op); err != nil {
		if errors.Is(err, errStale) || errors.Is(err, syscall.EEXIST) || errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR) {
			return false, nil // a user is told so
		}
		return false, err
	}
	after := contents(c.View)
	for n, oid := range names {
		// Who removes one of several names may do so: the others are somebody else's.
		if o := c.View.Objects[oid]; c.View.Names[n] != oid && o != nil && op[0] != "exchange" && !moved(op, n, names) {
			delete(after, o.Data)
		}
	}
	for d := range before {
		if after[d] {
			continue
		}
		for w := range u.Wanted { // by who had seen it, in what was joined too
			if strings.Contains(d, w) {
				delete(u.Wanted, w)
			}
		}
	}
	for d := range after {
		if !before[d] {
			u.Wanted[d] = true
		}
	}
	return true, nil
}

// moved reports whether an operation took a name from its object by moving it.
func moved(op Op, n Name, names map[Name]kml.OID) bool {
	at := Name{Parent: kml.RootOID}
	for part := range strings.SplitSeq(op[1], "/") {
		if at.Name != "" {
			at.Parent = names[at]
		}
		at.Name = part
	}
	return op[0] == "rename" && at == n
}

// possible is false for what a kernel stops before any tree hears of it.
func possible(c *Client, op Op) bool {
	oid, _, there := c.View.Find(op[1])
	switch op[0] {
	case "write":
		return there && c.View.Objects[oid].Attr.Mode&typeMask == typeFile
	case "link":
		_, _, taken := c.View.Find(op[2])
		return there && !c.View.isDir(oid) && !taken
	case "rename":
		if oid2, _, taken := c.View.Find(op[2]); taken && (c.View.isDir(oid) != c.View.isDir(oid2) || oid == oid2) {
			return false
		}
	case "exchange":
		oid2, _, taken := c.View.Find(op[2])
		return there && taken && oid != oid2
	case "unlink":
		return there && !c.View.isDir(oid)
	case "rmdir":
		return there && c.View.isDir(oid)
	case "chmod":
		return there && c.View.Objects[oid].Attr.Mode&typeMask != typeLink
	case "removexattr":
		if there {
			_, has := c.View.Objects[oid].Xattrs["user.x"]
			return has
		}
	}
	return true
}

func contents(t *Tree) map[string]bool {
	m := map[string]bool{}
	for _, o := range t.Objects {
		if o.Data != "" {
			m[o.Data] = true
		}
	}
	return m
}
