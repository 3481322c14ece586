package export

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/tree"
)

// mending is which damaged files are being sent back.
type mending struct {
	mu  sync.Mutex
	now map[kml.OID]bool
}

// begin reports whether nobody else sends an object back; end must follow.
func (m *mending) begin(oid kml.OID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.now[oid] {
		return false
	}
	if m.now == nil {
		m.now = make(map[kml.OID]bool)
	}
	m.now[oid] = true
	return true
}

func (m *mending) end(oid kml.OID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.now, oid)
}

// mendPrefix begins the names in the stage of contents that are sent back.
const mendPrefix = "mend-"

// mendDir takes contents of damaged files: a file is made under a name that says
// what it will hold (feed.MendName), written, and installed by fsync.
type mendDir struct{ j *Journal }

// Lookup finds nothing: what is being sent back belongs to who opened it.
func (mendDir) Lookup(context.Context, *tree.Cred, string) (tree.ExtNode, error) {
	return tree.ExtNode{}, syscall.ENOENT
}

// List lists nothing.
func (mendDir) List(context.Context, *tree.Cred) ([]tree.ExtNode, error) { return nil, nil }

// Remove is refused: there is nothing.
func (mendDir) Remove(context.Context, *tree.Cred, string) error { return syscall.ENOENT }

// Create begins an offer. The errors of tree.Tree.Wanted say that it is of no
// use; EAGAIN says that somebody else is sending the same object back.
func (d mendDir) Create(ctx context.Context, c *tree.Cred, name string, flags int) (tree.ExtNode, tree.ExtHandle, error) {
	none := tree.ExtNode{}
	if _, err := d.j.may(ctx, c, RightWrite, "mend"); err != nil {
		return none, nil, err
	}
	of, err := parseMend(name)
	if err != nil {
		return none, nil, err
	}
	if flags&unix.O_ACCMODE == unix.O_RDONLY {
		return none, nil, syscall.EACCES
	}
	if err := d.j.t.Wanted(of); err != nil {
		return none, nil, err
	}
	if !d.j.mending.begin(of.OID) {
		return none, nil, fmt.Errorf("object %v is being sent back by somebody: %w", of.OID, syscall.EAGAIN)
	}
	path := filepath.Join(d.j.stage.dir, fmt.Sprintf("%s%016x", mendPrefix, uint64(of.OID)))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		d.j.mending.end(of.OID)
		return none, nil, err
	}
	h := &mendHandle{j: d.j, of: of, cred: c, f: f}
	return tree.ExtNode{
		Name: name, ID: idMends | hashID(uint64(of.OID))>>1, Mode: unix.S_IFREG | 0o200,
		Size: func(context.Context) (uint64, error) { return h.size(), nil },
	}, h, nil
}

func parseMend(name string) (tree.Offer, error) {
	m, err := feed.ParseMend(name)
	if err != nil {
		return tree.Offer{}, fmt.Errorf("%w: %w", err, syscall.EINVAL)
	}
	return tree.Offer{OID: m.OID, Version: m.Version, Mtime: m.Mtime, Digest: m.Digest[:]}, nil
}

// mendHandle is contents on their way back.
type mendHandle struct {
	j    *Journal
	of   tree.Offer
	cred *tree.Cred

	mu   sync.RWMutex // held for reading while it is written to
	f    *os.File
	part int64 // its part of the stage's quota; guarded by stage.mu
	done bool  // installed
}

func (h *mendHandle) size() uint64 {
	s := h.j.stage
	s.mu.Lock()
	defer s.mu.Unlock()
	return uint64(h.part)
}

// ReadAt is refused.
func (h *mendHandle) ReadAt(context.Context, []byte, int64) (int, error) { return 0, syscall.EBADF }

// WriteAt takes a piece.
func (h *mendHandle) WriteAt(_ context.Context, p []byte, off int64) (int, error) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.done {
		return 0, syscall.EBADF
	}
	if off < 0 || off > maxSize-int64(len(p)) {
		return 0, syscall.EFBIG
	}
	s := h.j.stage
	s.mu.Lock()
	err := s.reserve(&h.part, off+int64(len(p)))
	s.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return h.f.WriteAt(p, off)
}

// Fsync installs the contents, which are all there: EINVAL when they are not
// what the name says. They are durable when it returns.
func (h *mendHandle) Fsync(ctx context.Context, _ bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.done {
		return nil
	}
	if err := h.f.Sync(); err != nil {
		return err
	}
	if err := h.j.t.Mend(ctx, h.cred, h.of, h.f.Name()); err != nil {
		h.j.log.Info("contents of a damaged file were not taken", "oid", h.of.OID, "version", h.of.Version.String(), "err", err)
		return err
	}
	h.done = true
	return h.j.t.Commit(ctx)
}

// Attr says nothing.
func (h *mendHandle) Attr() (tree.Attr, bool) { return tree.Attr{}, false }

// Close gives up what was not installed.
func (h *mendHandle) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	err := h.f.Close()
	if !h.done {
		if e := os.Remove(h.f.Name()); !errors.Is(e, os.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	s := h.j.stage
	s.mu.Lock()
	s.bytes -= h.part
	h.part = 0
	s.mu.Unlock()
	h.j.mending.end(h.of.OID)
	return err
}

// dropMends removes what was on its way when the last process ended.
func dropMends(dir string) error {
	es, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range es {
		if hexa, ok := strings.CutPrefix(e.Name(), mendPrefix); ok && len(hexa) == 16 {
			if _, err := hex.DecodeString(hexa); err == nil {
				_ = os.Remove(filepath.Join(dir, e.Name())) // tried again at the next start
			}
		}
	}
	return nil
}
