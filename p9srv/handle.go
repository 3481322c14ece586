package p9srv

import (
	"strings"
	"syscall"

	"github.com/mezzofs/mezzo/p9srv/wire"
)

// handle appends the answer to c.out, or returns why there is none. Its slots
// are c's.
func (c *call) handle() error {
	if c.a != nil && !c.a.live && c.typ != wire.TypeTattach {
		return syscall.EBADF
	}
	if c.a != nil && c.a.xattr != nil && !forXattr(c.typ) {
		return syscall.EBADF
	}
	switch c.typ {
	case wire.TypeTauth:
		// No authentication is asked for; clients take this for "go on without".
		return syscall.EOPNOTSUPP
	case wire.TypeTattach:
		return c.attach()
	case wire.TypeTwalk:
		return c.walk()
	case wire.TypeTgetattr:
		return c.getattr()
	case wire.TypeTclunk:
		return c.clunk()
	case wire.TypeTread:
		return c.read()
	case wire.TypeTwrite:
		return c.write()
	case wire.TypeTlopen:
		return c.open()
	case wire.TypeTlcreate:
		return c.create()
	case wire.TypeTreaddir:
		return c.readdir()
	case wire.TypeTsetattr:
		return c.setattr()
	case wire.TypeTunlinkat:
		return c.unlinkat()
	case wire.TypeTrenameat:
		return c.renameat()
	case wire.TypeTmkdir:
		return c.mkdir()
	case wire.TypeTsymlink:
		return c.symlink()
	case wire.TypeTlink:
		return c.link()
	case wire.TypeTmknod:
		return c.mknod()
	case wire.TypeTreadlink:
		return c.readlink()
	case wire.TypeTstatfs:
		return c.statfs()
	case wire.TypeTfsync:
		return c.fsync()
	case wire.TypeTlock:
		return c.lock()
	case wire.TypeTgetlock:
		return c.getlock()
	case wire.TypeTxattrwalk:
		return c.xattrwalk()
	case wire.TypeTxattrcreate:
		return c.xattrcreate()
	case wire.TypeTopen:
		return c.oldOpen()
	case wire.TypeTcreate:
		return c.oldCreate()
	case wire.TypeTstat:
		return c.oldStat()
	case wire.TypeTwstat:
		return c.oldWstat()
	case wire.TypeTrename:
		return c.rename()
	case wire.TypeTremove:
		return c.remove()
	}
	return syscall.EOPNOTSUPP
}

// forXattr says what a fid that is an extended attribute is good for.
func forXattr(t wire.Type) bool {
	return t == wire.TypeTread || t == wire.TypeTwrite || t == wire.TypeTclunk || t == wire.TypeTremove || t == wire.TypeTattach
}

// checkName refuses what is not the name of an entry that could be made or
// removed.
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return syscall.EINVAL
	case len(name) > wire.MaxName:
		return syscall.ENAMETOOLONG
	case strings.IndexByte(name, '/') >= 0 || strings.IndexByte(name, 0) >= 0:
		return syscall.EINVAL
	}
	return nil
}

// checkFolder refuses a fid that names cannot be changed in.
func checkFolder(sl *slot) error {
	switch {
	case !sl.live || sl.xattr != nil:
		return syscall.EBADF
	case !sl.isDir():
		return syscall.ENOTDIR
	case sl.gone():
		return syscall.ENOENT
	}
	return nil
}
