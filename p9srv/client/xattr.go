package client

import (
	"context"
	"errors"
	"io"
	"strings"
	"syscall"

	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/p9srv/wire"
)

// maxXattr bounds an extended attribute and the list of their names, in bytes
// (XATTR_SIZE_MAX and XATTR_LIST_MAX of linux/limits.h).
const maxXattr = 64 << 10

// GetXattr returns the value of an extended attribute; ENODATA if the file has
// none of that name.
func (f *Fid) GetXattr(ctx context.Context, name string) ([]byte, error) {
	if name == "" {
		return nil, &Error{Op: "xattrwalk", Errno: syscall.ERANGE} // as getxattr(2)
	}
	return f.readXattr(ctx, name)
}

// ListXattrs returns the names of the file's extended attributes.
func (f *Fid) ListXattrs(ctx context.Context) ([]string, error) {
	list, err := f.readXattr(ctx, "")
	if err != nil {
		return nil, err
	}
	names := strings.Split(string(list), "\x00")
	kept := names[:0]
	for _, n := range names {
		if n != "" {
			kept = append(kept, n)
		}
	}
	return kept, nil
}

func (f *Fid) readXattr(ctx context.Context, name string) (value []byte, err error) {
	if err := checkStrings(name); err != nil {
		return nil, err
	}
	if f.closed.Load() {
		return nil, f.unusable(&wire.Txattrwalk{})
	}
	if f.c.old() {
		return nil, f.c.cannot("xattrwalk", name)
	}
	fid, err := f.c.newFID()
	if err != nil {
		return nil, err
	}
	var answer wire.Rxattrwalk
	if err := f.c.making(ctx, fid, &wire.Txattrwalk{FID: f.fid, NewFID: fid, Name: name}, &answer, name); err != nil {
		return nil, err
	}
	x := f.c.fidOf(fid, f.QID())
	defer func() { err = errors.Join(err, x.Clunk(ctx)) }()
	if answer.Size > maxXattr {
		return nil, &Error{Op: "xattrwalk", Name: name, Errno: syscall.E2BIG}
	}
	value = make([]byte, answer.Size)
	n, err := x.ReadAt(ctx, value, 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	return value[:n], nil
}

// SetXattr sets an extended attribute, with setxattr(2)'s flags.
func (f *Fid) SetXattr(ctx context.Context, name string, value []byte, flags p9.XattrFlags) error {
	if len(value) > maxXattr {
		return &Error{Op: "xattrcreate", Name: name, Errno: syscall.E2BIG}
	}
	return f.writeXattr(ctx, name, value, uint32(flags))
}

// RemoveXattr removes an extended attribute. On the wire it is a replacement by
// nothing, as Linux sends it.
func (f *Fid) RemoveXattr(ctx context.Context, name string) error {
	return f.writeXattr(ctx, name, nil, uint32(p9.XattrReplace))
}

// writeXattr turns a copy of the fid into one that takes the value; the server
// sets the attribute, and may refuse it, when that is given back.
func (f *Fid) writeXattr(ctx context.Context, name string, value []byte, flags uint32) error {
	if err := checkStrings(name); err != nil {
		return err
	}
	if f.c.old() {
		return f.c.cannot("xattrcreate", name)
	}
	x, err := f.Clone(ctx)
	if err != nil {
		return err
	}
	req := wire.Txattrcreate{FID: x.fid, Name: name, Size: uint64(len(value)), Flags: flags}
	if err := x.do(ctx, &req, &wire.Rxattrcreate{}, name); err != nil {
		x.Clunk(ctx) // a plain fid: its error means nothing here
		return err
	}
	_, err = x.WriteAt(ctx, value, 0)
	if clunk := x.Clunk(ctx); err == nil {
		err = clunk
	}
	return err
}
