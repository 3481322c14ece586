package tree

import (
	"encoding/binary"

	"github.com/mezzofs/mezzo/kml"
)

// aclMode is the permission bits that setting an access list makes of a mode, as
// in acl(5): owner, mask or group, other.
func aclMode(r *kml.Record) (mode uint32, ok bool) {
	const (
		userObj, groupObj, mask, other = 0x01, 0x04, 0x10, 0x20
	)
	b := r.Value
	if r.Op != kml.OpSetxattr || r.Name != "system.posix_acl_access" || len(b) < 4 || (len(b)-4)%8 != 0 {
		return 0, false
	}
	le := binary.LittleEndian
	if le.Uint32(b) != 2 {
		return 0, false
	}
	group, masked := uint32(0), false
	for b = b[4:]; len(b) > 0; b = b[8:] {
		perm := uint32(le.Uint16(b[2:])) & 7
		switch le.Uint16(b) {
		case userObj:
			mode |= perm << 6
		case groupObj:
			if !masked {
				group = perm
			}
		case mask:
			group, masked = perm, true
		case other:
			mode |= perm
		}
	}
	return mode | group<<3, true
}
