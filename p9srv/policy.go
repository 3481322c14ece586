package p9srv

import (
	"syscall"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"
)

// setID are the bits of a mode by which a program runs as its owner or group.
const setID p9.FileMode = unix.S_ISUID | unix.S_ISGID

// capabilityXattr gives the programs that have it what root may do.
const capabilityXattr = "security.capability"

// mayHave refuses what the options bar: devices, and files that others run with
// their owner's rights. mode may lack the type of a regular file. A folder's
// setgid bit is about groups alone.
func (o *Options) mayHave(mode p9.FileMode) error {
	switch mode & p9.FileModeMask {
	case unix.S_IFDIR:
	case unix.S_IFBLK, unix.S_IFCHR:
		if o.NoDevices {
			return syscall.EPERM
		}
	default:
		if o.NoSetID && mode&setID != 0 {
			return syscall.EPERM
		}
	}
	return nil
}
