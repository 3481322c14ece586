package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// upload is the contents of a store on their way: the origin of its record.
type upload struct {
	site kml.SiteID
	seq  uint64
}

// name is SITE-SEQ, in decimal.
func (u upload) name() string { return fmt.Sprintf("%d-%d", u.site, u.seq) }

// parseUpload reads such a name; only the one form there is.
func parseUpload(name string) (u upload, ok bool) {
	a, b, _ := strings.Cut(name, "-")
	site, err1 := strconv.ParseUint(a, 10, 20)
	seq, err2 := strconv.ParseUint(b, 10, 44)
	u = upload{kml.SiteID(site), seq}
	return u, err1 == nil && err2 == nil && u.name() == name && site > 0 && seq > 0
}

// stage is the uploads in the tree's stage folder. Files of other names there
// are not its own.
type stage struct {
	dir   string
	quota int64

	mu    sync.Mutex
	bytes int64
	files map[upload]*staged
}

// staged is an upload that is there.
type staged struct {
	size int64
	open int // handles that may write
	gen  int // handles of an older one may not any more

	wmu sync.RWMutex // held while a piece is written; before stage.mu
}

// maxSize is the largest size of a file on any file system of Linux, in bytes.
const maxSize = 1<<63 - 1

// maxUploads bounds the number of files.
const maxUploads = 1 << 16

// openStage finds what uploads there are from before.
func openStage(dir string, quota int64) (*stage, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	es, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	s := &stage{dir: dir, quota: quota, files: make(map[upload]*staged)}
	for _, e := range es {
		u, ok := parseUpload(e.Name())
		if !ok {
			continue
		}
		st, err := e.Info()
		if err != nil {
			continue // gone meanwhile
		}
		s.files[u] = &staged{size: st.Size()}
		s.bytes += st.Size()
	}
	return s, nil
}

func (s *stage) path(u upload) string { return filepath.Join(s.dir, u.name()) }

// used is how many bytes all uploads have together.
func (s *stage) used() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}

// size is an upload's size; ok is false when there is none.
func (s *stage) size(u upload) (n int64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, ok := s.files[u]
	if !ok {
		return 0, false
	}
	return f.size, true
}

// open opens an upload; with O_CREAT it may be a new one.
func (s *stage) open(u upload, flags int) (*stageHandle, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, ok := s.files[u]
	switch {
	case !ok && flags&unix.O_CREAT == 0:
		return nil, syscall.ENOENT
	case ok && flags&unix.O_EXCL != 0:
		return nil, syscall.EEXIST
	case !ok && len(s.files) >= maxUploads:
		return nil, syscall.EDQUOT
	}
	keep := unix.O_ACCMODE | unix.O_CREAT
	fd, err := os.OpenFile(s.path(u), flags&keep|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if !ok {
		f = &staged{}
		s.files[u] = f
	}
	h := &stageHandle{s: s, u: u, f: fd, st: f, gen: f.gen, writes: flags&unix.O_ACCMODE != unix.O_RDONLY}
	if h.writes {
		f.open++
		if flags&unix.O_TRUNC != 0 {
			if err := fd.Truncate(0); err != nil {
				f.open--
				fd.Close()
				return nil, err
			}
			s.bytes -= f.size
			f.size = 0
		}
	}
	return h, nil
}

// put makes an upload of contents that are here.
func (s *stage) put(u upload, data []byte) error {
	h, err := s.open(u, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC)
	if err != nil {
		return err
	}
	if len(data) > 0 {
		// Who sent it does not wait.
		_, err = h.WriteAt(context.Background(), data, 0)
	}
	if err = errors.Join(err, h.Close()); err != nil {
		err = errors.Join(err, s.remove(u)) // it takes no room from others
	}
	return err
}

// fence shuts the handles of a site's uploads: those of a connection that its
// client has given up may be heard of much later.
func (s *stage) fence(site kml.SiteID) {
	for _, u := range s.of(func(id kml.SiteID) bool { return id == site }) {
		s.mu.Lock()
		f := s.files[u]
		s.mu.Unlock()
		if f == nil {
			continue
		}
		f.wmu.Lock() // what is being written gets there before
		s.mu.Lock()
		f.gen++
		f.open = 0
		s.mu.Unlock()
		f.wmu.Unlock()
	}
}

// remove drops an upload.
func (s *stage) remove(u upload) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, ok := s.files[u]
	if !ok {
		return syscall.ENOENT
	}
	if err := os.Remove(s.path(u)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	s.bytes -= f.size
	delete(s.files, u)
	return nil
}

// take is the path of an upload that is complete, for its record to be applied
// with; "" when there is none. EBUSY while somebody may still write to it.
func (s *stage) take(u upload) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, ok := s.files[u]
	switch {
	case !ok:
		return "", nil
	case f.open > 0:
		return "", fmt.Errorf("upload %s is still open: %w", u.name(), syscall.EBUSY)
	}
	return s.path(u), nil
}

// acknowledged drops the uploads of a site whose outcome it knows: those up to
// seq.
func (s *stage) acknowledged(site kml.SiteID, seq uint64) {
	for _, u := range s.of(func(id kml.SiteID) bool { return id == site }) {
		if u.seq <= seq {
			_ = s.remove(u) // it is looked at again in the next session
		}
	}
}

// of lists the uploads of some sites, in order.
func (s *stage) of(site func(kml.SiteID) bool) []upload {
	s.mu.Lock()
	defer s.mu.Unlock()
	var us []upload
	for u := range s.files {
		if site(u.site) {
			us = append(us, u)
		}
	}
	slices.SortFunc(us, func(a, b upload) int {
		if a.site != b.site {
			return int(a.site) - int(b.site)
		}
		return int(int64(a.seq) - int64(b.seq))
	})
	return us
}

// grow reserves room up to size; EDQUOT when all uploads together would have too
// much. One alone may have any size: it could never be sent otherwise.
func (s *stage) grow(h *stageHandle, size int64) error {
	f := h.st
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.gen != f.gen || s.files[h.u] != f {
		return syscall.ESTALE
	}
	return s.reserve(&f.size, size)
}

// reserve is grow for a part of the quota. The caller holds mu.
func (s *stage) reserve(part *int64, size int64) error {
	if more := size - *part; more > 0 {
		if s.bytes+more > s.quota && s.bytes > *part {
			return syscall.EDQUOT
		}
		s.bytes += more
		*part = size
	}
	return nil
}

// stageHandle is an open upload.
type stageHandle struct {
	s      *stage
	u      upload
	f      *os.File
	st     *staged
	gen    int
	writes bool
}

// ReadAt reads what has arrived.
func (h *stageHandle) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	n, err := h.f.ReadAt(p, off)
	if n > 0 || errors.Is(err, io.EOF) {
		return n, nil
	}
	return 0, err
}

// WriteAt writes a piece.
func (h *stageHandle) WriteAt(_ context.Context, p []byte, off int64) (int, error) {
	if off < 0 || off > maxSize-int64(len(p)) {
		return 0, syscall.EFBIG
	}
	h.st.wmu.RLock()
	defer h.st.wmu.RUnlock()
	if err := h.s.grow(h, off+int64(len(p))); err != nil {
		return 0, err
	}
	return h.f.WriteAt(p, off)
}

// Fsync makes the pieces durable.
func (h *stageHandle) Fsync(_ context.Context, datasync bool) error {
	if datasync {
		return unix.Fdatasync(int(h.f.Fd()))
	}
	return h.f.Sync()
}

// Attr says nothing; the entry knows its size.
func (h *stageHandle) Attr() (tree.Attr, bool) { return tree.Attr{}, false }

// Close ends the upload, or this part of it.
func (h *stageHandle) Close() error {
	if h.writes {
		h.s.mu.Lock()
		if h.gen == h.st.gen {
			h.st.open--
		}
		h.s.mu.Unlock()
	}
	return h.f.Close()
}

// stageDir is the stage as a folder: everybody sees the uploads of the sites that
// the caller's identity enrolled.
type stageDir struct{ j *Journal }

// owns reports whether a site is the identity's.
func (d stageDir) owns(id Identity, site kml.SiteID) bool {
	s, ok := d.j.t.Site(site)
	return ok && s.UID == id.UID
}

// upload checks a name and that its site is the caller's.
func (d stageDir) upload(ctx context.Context, c *tree.Cred, name string) (upload, error) {
	id, err := d.j.may(ctx, c, RightWrite, "stage")
	if err != nil {
		return upload{}, err
	}
	u, ok := parseUpload(name)
	if !ok {
		return u, syscall.EINVAL
	}
	if !d.owns(id, u.site) {
		return u, syscall.EACCES
	}
	return u, nil
}

func (d stageDir) node(u upload) tree.ExtNode {
	return tree.ExtNode{
		Name: u.name(), ID: idUploads | hashID(uint64(kml.MakeOID(u.site, u.seq))), Mode: unix.S_IFREG | 0o666,
		Size: func(context.Context) (uint64, error) {
			n, ok := d.j.stage.size(u)
			if !ok {
				return 0, syscall.ESTALE
			}
			return uint64(n), nil
		},
		Open: func(ctx context.Context, c *tree.Cred, flags int) (tree.ExtHandle, error) {
			if _, err := d.upload(ctx, c, u.name()); err != nil {
				return nil, err
			}
			h, err := d.j.stage.open(u, flags&^(unix.O_CREAT|unix.O_EXCL))
			if err != nil {
				return nil, err
			}
			return h, nil
		},
	}
}

// Lookup finds an upload.
func (d stageDir) Lookup(ctx context.Context, c *tree.Cred, name string) (tree.ExtNode, error) {
	u, err := d.upload(ctx, c, name)
	if errors.Is(err, syscall.EINVAL) {
		err = syscall.ENOENT
	}
	if err != nil {
		return tree.ExtNode{}, err
	}
	if _, ok := d.j.stage.size(u); !ok {
		return tree.ExtNode{}, syscall.ENOENT
	}
	return d.node(u), nil
}

// List lists the caller's uploads.
func (d stageDir) List(ctx context.Context, c *tree.Cred) ([]tree.ExtNode, error) {
	id, err := d.j.may(ctx, c, RightWrite, "stage")
	if err != nil {
		return nil, err
	}
	var list []tree.ExtNode
	for _, u := range d.j.stage.of(func(s kml.SiteID) bool { return d.owns(id, s) }) {
		list = append(list, d.node(u))
	}
	return list, nil
}

// Create begins an upload.
func (d stageDir) Create(ctx context.Context, c *tree.Cred, name string, flags int) (tree.ExtNode, tree.ExtHandle, error) {
	u, err := d.upload(ctx, c, name)
	if err != nil {
		return tree.ExtNode{}, nil, err
	}
	h, err := d.j.stage.open(u, flags|unix.O_CREAT)
	if err != nil {
		return tree.ExtNode{}, nil, err
	}
	return d.node(u), h, nil
}

// Remove gives an upload up.
func (d stageDir) Remove(ctx context.Context, c *tree.Cred, name string) error {
	u, err := d.upload(ctx, c, name)
	if err != nil {
		return err
	}
	return d.j.stage.remove(u)
}
