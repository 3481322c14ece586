package p9srv

import (
	"fmt"
	"os/user"
	"strconv"
	"syscall"
	"unsafe"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"
)

// peerCred is who is at the other end of a unix socket, as the kernel says.
type peerCred struct {
	uid, gid uint32
	groups   []uint32
}

// peerCredentials asks for them; nil where the kernel does not tell.
func peerCredentials(raw syscall.RawConn) *peerCred {
	if raw == nil {
		return nil
	}
	var p *peerCred
	err := raw.Control(func(fd uintptr) {
		c, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil || c.Uid == NoID {
			return
		}
		p = &peerCred{uid: c.Uid, gid: c.Gid, groups: peerGroups(int(fd))}
	})
	if err != nil {
		return nil
	}
	return p
}

// peerGroups is SO_PEERGROUPS of socket(7), which x/sys has no function for.
func peerGroups(fd int) []uint32 {
	const size = unsafe.Sizeof(uint32(0))
	groups := make([]uint32, 64)
	for {
		n := uint32(uintptr(len(groups)) * size)
		_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&n)), 0)
		switch {
		case e == 0:
			return groups[:uintptr(n)/size]
		case e == unix.ERANGE && uintptr(n)/size > uintptr(len(groups)):
			groups = make([]uint32, uintptr(n)/size)
		default:
			return nil
		}
	}
}

// who decides who attaches: by number when the client gave one, else by name.
// Over a unix socket the peer may only be itself, unless it is root.
func (s *session) who(uid p9.UID, name string) (*User, error) {
	u := User{UID: uint32(uid), GID: NoID, Name: name, Peer: s.peer, Conn: s.num}
	if c := s.cred; c != nil {
		u.Proven = true
		if u.UID == NoID && name == "" {
			u.UID = c.uid
		}
		if u.UID == c.uid {
			u.GID, u.Groups = c.gid, c.groups
			return &u, nil
		}
	}
	s.lookUp(&u)
	if n, err := strconv.ParseUint(name, 10, 32); err == nil && u.UID == NoID {
		u.UID = uint32(n) // 9P2000 has no numbers but as names
		s.lookUp(&u)
	}
	c := s.cred
	switch {
	case c == nil || c.uid == 0:
		return &u, nil
	case u.UID == c.uid:
		u.GID, u.Groups = c.gid, c.groups
		return &u, nil
	}
	return nil, fmt.Errorf("attach as %d %q by uid %d: %w", u.UID, name, c.uid, syscall.EPERM)
}

// lookUp completes a user by number, or by name when there is none.
func (s *session) lookUp(u *User) {
	if u.UID == NoID && u.Name == "" {
		return
	}
	if k, err := s.srv.opts.Users(u.UID, u.Name); err == nil && k.UID != NoID {
		u.UID, u.GID, u.Groups = k.UID, k.GID, k.Groups
	}
}

// systemUser looks in the system's user database, by number when there is one.
func systemUser(uid uint32, name string) (User, error) {
	var k *user.User
	var err error
	if uid != NoID {
		k, err = user.LookupId(strconv.FormatUint(uint64(uid), 10))
	} else {
		k, err = user.Lookup(name)
	}
	if err != nil {
		return User{}, err
	}
	u := User{UID: NoID, GID: NoID, Name: k.Username}
	if n, err := strconv.ParseUint(k.Uid, 10, 32); err == nil {
		u.UID = uint32(n)
	}
	if n, err := strconv.ParseUint(k.Gid, 10, 32); err == nil {
		u.GID = uint32(n)
	}
	ids, err := k.GroupIds()
	if err != nil {
		return User{}, err
	}
	for _, id := range ids {
		if n, err := strconv.ParseUint(id, 10, 32); err == nil {
			u.Groups = append(u.Groups, uint32(n))
		}
	}
	return u, nil
}
