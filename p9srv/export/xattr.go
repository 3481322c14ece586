package export

import "github.com/hugelgupf/p9/p9"

// GetXattr reads an extended attribute; ENODATA when there is none.
func (f *File) GetXattr(name string) ([]byte, error) {
	return f.n.s.e.fs.Getxattr(f.ctx, f.n.s.cred, f.n.oid, name)
}

// ListXattrs names the extended attributes the user may see.
func (f *File) ListXattrs() ([]string, error) {
	return f.n.s.e.fs.Listxattr(f.ctx, f.n.s.cred, f.n.oid)
}

// SetXattr sets one; flags are setxattr(2)'s.
func (f *File) SetXattr(name string, value []byte, flags p9.XattrFlags) error {
	if err := f.n.s.writable(); err != nil {
		return err
	}
	return f.n.s.e.fs.Setxattr(f.ctx, f.n.s.cred, f.n.oid, name, value, int(flags))
}

// RemoveXattr removes one; ENODATA when there is none.
func (f *File) RemoveXattr(name string) error {
	if err := f.n.s.writable(); err != nil {
		return err
	}
	return f.n.s.e.fs.Removexattr(f.ctx, f.n.s.cred, f.n.oid, name)
}
