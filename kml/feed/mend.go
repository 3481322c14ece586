package feed

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/mezzofs/mezzo/kml"
)

// Mend says what a file in the folder mend will hold: contents of a damaged file.
type Mend struct {
	OID     kml.OID
	Version kml.Position // whose contents they are
	Mtime   int64        // that version's, ns since 1970
	Digest  [32]byte     // BLAKE3 of them
}

// String is the file's name:
//
//	OID.VERSION.MTIME.DIGEST
//
// with oid and version as 16 hex digits, the time in decimal, and the digest as
// 64 hex digits, in lower case.
func (m Mend) String() string {
	return fmt.Sprintf("%016x.%016x.%d.%x", uint64(m.OID), uint64(m.Version), m.Mtime, m.Digest)
}

// ParseMend reads such a name; only the one form there is.
func ParseMend(name string) (Mend, error) {
	var m Mend
	f := strings.Split(name, ".")
	if len(f) != 4 || len(f[3]) != 2*len(m.Digest) {
		return Mend{}, bad(name)
	}
	oid, err1 := strconv.ParseUint(f[0], 16, 64)
	version, err2 := strconv.ParseUint(f[1], 16, 64)
	mtime, err3 := strconv.ParseInt(f[2], 10, 64)
	digest, err4 := hex.DecodeString(f[3])
	if err1 != nil || err2 != nil || err3 != nil || err4 != nil {
		return Mend{}, bad(name)
	}
	m.OID, m.Version, m.Mtime = kml.OID(oid), kml.Position(version), mtime
	copy(m.Digest[:], digest)
	if m.String() != name {
		return Mend{}, bad(name)
	}
	return m, nil
}
