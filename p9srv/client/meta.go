package client

import (
	"context"
	"syscall"

	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/p9srv/wire"
)

// GetAttr returns the attributes asked for, and which of them the server
// filled in.
func (f *Fid) GetAttr(ctx context.Context, mask p9.AttrMask) (p9.QID, p9.AttrMask, p9.Attr, error) {
	if f.c.old() {
		st, err := f.oldStat(ctx)
		if err != nil {
			return p9.QID{}, p9.AttrMask{}, p9.Attr{}, err
		}
		valid, attr := oldAttr(&st)
		return st.QID, valid, attr, nil
	}
	var answer wire.Rgetattr
	if err := f.do(ctx, &wire.Tgetattr{FID: f.fid, Mask: mask}, &answer, ""); err != nil {
		return p9.QID{}, p9.AttrMask{}, p9.Attr{}, err
	}
	return answer.QID, answer.Valid, answer.Attr, nil
}

// SetAttr sets the attributes that valid names.
func (f *Fid) SetAttr(ctx context.Context, valid p9.SetAttrMask, attr p9.SetAttr) error {
	if f.c.old() {
		return f.oldSetAttr(ctx, valid, attr)
	}
	return f.do(ctx, &wire.Tsetattr{FID: f.fid, Valid: valid, Attr: attr}, &wire.Rsetattr{}, "")
}

// StatFS describes the file system the file is on.
func (f *Fid) StatFS(ctx context.Context) (p9.FSStat, error) {
	if f.c.old() {
		return p9.FSStat{}, f.c.cannot("statfs", "")
	}
	var answer wire.Rstatfs
	err := f.do(ctx, &wire.Tstatfs{FID: f.fid}, &answer, "")
	return answer.Stat, err
}

// Readlink returns a symbolic link's target.
func (f *Fid) Readlink(ctx context.Context) (string, error) {
	if f.c.old() {
		st, err := f.oldStat(ctx)
		if err == nil && st.Mode&wire.DMSymlink == 0 {
			err = &Error{Op: "readlink", Errno: syscall.EINVAL}
		}
		return st.Extension, err
	}
	var answer wire.Rreadlink
	err := f.do(ctx, &wire.Treadlink{FID: f.fid}, &answer, "")
	return answer.Target, err
}

// Lock is a byte range of a file and who locks it.
type Lock struct {
	Type          p9.LockType
	Flags         p9.LockFlags // of Lock only; p9.LockFlagsBlock lets the server wait
	Start, Length uint64       // Length 0: to the end of the file
	PID           uint32       // of the locking process
	Client        string       // name of this client
}

// Lock takes or (p9.Unlock) releases a lock. The status says whether it was
// done; a server asked to wait may do so, or answer p9.LockStatusBlocked and
// want to be asked again.
func (f *Fid) Lock(ctx context.Context, l Lock) (p9.LockStatus, error) {
	if err := checkStrings(l.Client); err != nil {
		return p9.LockStatusError, err
	}
	if f.c.old() {
		return p9.LockStatusError, f.c.cannot("lock", "")
	}
	var answer wire.Rlock
	req := wire.Tlock{FID: f.fid, Type: l.Type, Flags: l.Flags, Start: l.Start, Length: l.Length, PID: l.PID, Client: l.Client}
	if err := f.do(ctx, &req, &answer, ""); err != nil {
		return p9.LockStatusError, err
	}
	return answer.Status, nil
}

// GetLock returns a lock that would keep l from being taken, or one of type
// p9.Unlock if there is none.
func (f *Fid) GetLock(ctx context.Context, l Lock) (Lock, error) {
	if err := checkStrings(l.Client); err != nil {
		return Lock{}, err
	}
	if f.c.old() {
		return Lock{}, f.c.cannot("getlock", "")
	}
	var answer wire.Rgetlock
	req := wire.Tgetlock{FID: f.fid, Type: l.Type, Start: l.Start, Length: l.Length, PID: l.PID, Client: l.Client}
	if err := f.do(ctx, &req, &answer, ""); err != nil {
		return Lock{}, err
	}
	return Lock{Type: answer.Type, Start: answer.Start, Length: answer.Length, PID: answer.PID, Client: answer.Client}, nil
}
