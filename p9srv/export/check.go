package export

import (
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// maxName and maxTarget are the lengths of a name and of a symbolic link's
// contents that Linux allows, in bytes.
const (
	maxName   = 255
	maxTarget = 4095
)

// checkRecord refuses a record of a site's session that no honest client sends:
// one whose origin or new oid is another's (but for an object that was there and is
// made again, of which minted knows), whose names cannot be or reach out of
// their folder, that names the root as what goes, or of a kind that only a
// master makes.
func checkRecord(r *kml.Record, site kml.SiteID, minted func(kml.OID) bool) error {
	if r.Origin.Site != site || r.Origin.Seq == 0 {
		return fmt.Errorf("origin %d:%d is not of site %d: %w", r.Origin.Site, r.Origin.Seq, site, syscall.EPERM)
	}
	if r.OID == 0 {
		return fmt.Errorf("record %d has no object: %w", r.Origin.Seq, syscall.EINVAL)
	}
	switch r.Op {
	case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod:
		return checkNew(r, site, minted)
	case kml.OpLink:
		return checkName(r.Parent, r.Name)
	case kml.OpUnlink, kml.OpRmdir:
		if r.OID == kml.RootOID {
			return fmt.Errorf("the root cannot be removed: %w", syscall.EBUSY)
		}
		return checkName(r.Parent, r.Name)
	case kml.OpRename:
		if r.OID == kml.RootOID || r.Victim != nil && r.Victim.OID == kml.RootOID {
			return fmt.Errorf("the root cannot be moved or replaced: %w", syscall.EBUSY)
		}
		if r.Flags&kml.FlagNoReplace != 0 && r.Flags&kml.FlagExchange != 0 {
			return fmt.Errorf("rename that exchanges and does not replace: %w", syscall.EINVAL)
		}
		if err := checkName(r.Parent, r.Name); err != nil {
			return err
		}
		return checkName(r.NewParent, r.NewName)
	case kml.OpSetattr:
		const may = kml.MaskMode | kml.MaskUID | kml.MaskGID | kml.MaskMtime | kml.MaskAtime
		if r.Mask == 0 || r.Mask&^may != 0 {
			return fmt.Errorf("setattr of fields %#x: %w", uint16(r.Mask), syscall.EINVAL)
		}
	case kml.OpSetxattr, kml.OpRemovexattr:
		if r.Name == "" || len(r.Name) > maxName || strings.IndexByte(r.Name, 0) >= 0 {
			return fmt.Errorf("attribute name %q: %w", cut(r.Name), syscall.EINVAL)
		}
	case kml.OpStore:
		if r.OID == kml.RootOID {
			return fmt.Errorf("store of the root: %w", syscall.EISDIR)
		}
	default:
		return fmt.Errorf("a client may not send %v: %w", r.Op, syscall.EPERM)
	}
	return nil
}

// checkNew checks what makes an object.
func checkNew(r *kml.Record, site kml.SiteID, minted func(kml.OID) bool) error {
	again := r.Flags&kml.FlagConflict != 0 && r.OID.Site() != site && minted(r.OID)
	if !again && (r.OID.Site() != site || r.OID.Counter() == 0) {
		return fmt.Errorf("oid %s is not of site %d: %w", r.OID, site, syscall.EPERM)
	}
	var ok bool
	switch t := r.Attr.Mode & unix.S_IFMT; r.Op {
	case kml.OpCreate:
		ok = t == unix.S_IFREG
	case kml.OpMkdir:
		ok = t == unix.S_IFDIR
	case kml.OpSymlink:
		ok = t == unix.S_IFLNK && r.Target != "" && len(r.Target) <= maxTarget && strings.IndexByte(r.Target, 0) < 0
	case kml.OpMknod:
		ok = t == unix.S_IFIFO || t == unix.S_IFSOCK || t == unix.S_IFCHR || t == unix.S_IFBLK
	}
	if !ok {
		return fmt.Errorf("%v of mode %#o: %w", r.Op, r.Attr.Mode, syscall.EINVAL)
	}
	return checkName(r.Parent, r.Name)
}

func checkName(parent kml.OID, name string) error {
	switch {
	case parent == 0:
		return fmt.Errorf("name %q without a folder: %w", cut(name), syscall.EINVAL)
	case len(name) > maxName:
		return fmt.Errorf("name %q: %w", cut(name), syscall.ENAMETOOLONG)
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return fmt.Errorf("name %q: %w", name, syscall.EINVAL)
	case parent == kml.RootOID && name == tree.ExtDirName:
		return fmt.Errorf("%s in the root: %w", name, syscall.EPERM)
	}
	return nil
}

// cut shortens what is only shown.
func cut(s string) string { return s[:min(len(s), 64)] }
