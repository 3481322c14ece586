package cachefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/cachefs/merge"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/conflict"
	"github.com/mezzofs/mezzo/kml/local"
)

// Times that a need may take before it is answered with no.
const (
	compareTime = 30 * time.Second
	fetchTime   = 10 * time.Minute
)

// needError is what a pass needs of the master, or of a merge program, before it
// can go on. Exactly one of same, fetch and join is set.
type needError struct {
	same  *sameKey
	path  string // what is to be compared
	fetch *fetchKey
	join  *joining
}

// Error is error's.
func (n *needError) Error() string { return "something has to be brought before a conflict is settled" }

// sameKey is a comparison of contents here with a version of the master's.
type sameKey struct {
	mine    kml.OID
	of      uint64 // a store's ID, or a version
	theirs  kml.OID
	version kml.Position
}

// fetchKey is a version of the master's.
type fetchKey struct {
	oid     kml.OID
	version kml.Position
}

// joining is a merge: ours is what is written here, base what it was made from; no
// path is nothing. theirs is fetched.
type joining struct {
	key        joinKey
	policy     conflict.Policy
	base, ours string
	theirs     string
	uid, gid   uint32
}

type joinKey struct {
	ours   uint64 // a store's ID, or 0 and
	mine   kml.OID
	theirs fetchKey
}

// needs are the answers to what passes needed, until nothing is stuck any more.
type needs struct {
	c *Client

	mu      sync.Mutex
	n       int
	same    map[sameKey]bool
	fetched map[fetchKey]string // "": it cannot be had
	joined  map[joinKey]string  // "": they do not join
}

func (n *needs) init(c *Client) {
	n.c = c
	n.same, n.fetched, n.joined = make(map[sameKey]bool), make(map[fetchKey]string), make(map[joinKey]string)
}

// clear forgets all answers.
func (n *needs) clear() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, path := range n.fetched {
		_ = os.Remove(path) // the next start looks again
	}
	for _, path := range n.joined {
		_ = os.Remove(path)
	}
	clear(n.same)
	clear(n.fetched)
	clear(n.joined)
}

func (n *needs) compared(k sameKey) (same, known bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	same, known = n.same[k]
	return same, known
}

func (n *needs) version(k fetchKey) (path string, known bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	path, known = n.fetched[k]
	return path, known
}

func (n *needs) merged(k joinKey) (path string, known bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	path, known = n.joined[k]
	return path, known
}

// temp is the path of a new file, which the next start removes.
func (n *needs) temp() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.n++
	return n.c.cache.State().Path("stage", fmt.Sprintf("settle-%d", n.n))
}

// bring finds an answer. Without a link there is none: the pass asks again.
func (n *needs) bring(up *upstream, what *needError) {
	ctx, cancel := up.bind(n.c.ctx)
	defer cancel()
	switch {
	case what.same != nil:
		ctx, cancel := context.WithTimeout(ctx, compareTime)
		defer cancel()
		same, err := n.compare(ctx, *what.same, what.path)
		if n.over(up, err) {
			return
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		n.same[*what.same] = same && err == nil
	case what.fetch != nil:
		ctx, cancel := context.WithTimeout(ctx, fetchTime)
		defer cancel()
		path := n.temp()
		err := n.fetch(ctx, *what.fetch, path)
		if err != nil {
			_ = os.Remove(path)
			path = ""
		}
		if n.over(up, err) {
			return
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		n.fetched[*what.fetch] = path
	default:
		path := n.temp()
		if err := n.join(ctx, what.join, path); err != nil {
			n.c.log.Info("versions of a file are not joined; both stay", "policy", what.join.policy.String(), "oid", what.join.key.theirs.oid, "err", err)
			_ = os.Remove(path)
			path = ""
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		n.joined[what.join.key] = path
	}
}

// over reports whether there is no answer because the link has ended, or the
// version is another one by now: then the pass asks for that.
func (n *needs) over(up *upstream, err error) bool {
	return err != nil && (up.ctx.Err() != nil || n.c.ctx.Err() != nil || errors.Is(err, syscall.ESTALE) || errors.Is(err, syscall.EHOSTDOWN))
}

// compare compares a file with a version of the master's.
func (n *needs) compare(ctx context.Context, k sameKey, path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, nil // it has moved on
	}
	defer f.Close()
	same := true
	buf := make([]byte, 1<<20)
	err = n.read(ctx, fetchKey{k.theirs, k.version}, func(p []byte) error {
		if _, err := io.ReadFull(f, buf[:len(p)]); err != nil || !bytes.Equal(buf[:len(p)], p) {
			same = false
			return io.EOF
		}
		return nil
	})
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	return same, err
}

// fetch brings a version into a file.
func (n *needs) fetch(ctx context.Context, k fetchKey, path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = n.read(ctx, k, func(p []byte) error {
		_, err := f.Write(p)
		return err
	})
	return errors.Join(err, f.Close())
}

// read reads a version of the master's. ESTALE: it has another one by now.
func (n *needs) read(ctx context.Context, k fetchKey, take func(p []byte) error) error {
	src, err := n.c.OpenVersion(ctx, k.oid)
	if err != nil {
		return err
	}
	defer src.Close()
	if src.Version() != k.version {
		return syscall.ESTALE
	}
	buf := make([]byte, min(1<<20, max(1, src.Size())))
	for off := uint64(0); off < src.Size(); {
		m, err := src.ReadAt(ctx, buf[:min(uint64(len(buf)), src.Size()-off)], int64(off))
		if err != nil {
			return err
		}
		if m == 0 {
			return io.ErrUnexpectedEOF
		}
		if err := take(buf[:m]); err != nil {
			return err
		}
		off += uint64(m)
	}
	return nil
}

// join joins two versions into a file.
func (n *needs) join(ctx context.Context, j *joining, path string) (err error) {
	var files [3]merge.Version
	for i, p := range []string{j.base, j.ours, j.theirs} {
		files[i].ReaderAt = bytes.NewReader(nil)
		if p == "" {
			continue
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return err
		}
		files[i] = merge.Version{ReaderAt: f, Size: st.Size()}
	}
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if j.policy.Kind == conflict.Append {
		return merge.Append(out, files[0], files[1], files[2])
	}
	prog := n.c.o.Programs[j.policy.Program]
	if len(prog) == 0 {
		return fmt.Errorf("%s: no merge program of that name is set up on this host", j.policy.Program)
	}
	read := func(v merge.Version) io.Reader { return io.NewSectionReader(v, 0, v.Size) }
	job := merge.Job{Program: prog, Base: read(files[0]), Ours: read(files[1]), Theirs: read(files[2]), UID: j.uid, GID: j.gid}
	return job.Run(ctx, func(r io.Reader, _ int64) error {
		_, err := io.Copy(out, r)
		return err
	})
}

// join is the file of what a merge comes to, or "" when it comes to nothing.
func (s *settling) join(e *local.Entry, r *kml.Record, m *conflict.Merge) (string, error) {
	theirs := s.object(m.OID)
	if theirs == nil {
		return "", s.Err()
	}
	j := joining{policy: m.Policy, uid: r.UID, gid: r.GID, key: joinKey{ours: e.ID, theirs: fetchKey{m.OID, theirs.DataVersion}}}
	if m.Mine != 0 {
		path, dirty, err := s.c.cache.OwnBytes(m.Mine)
		if err != nil || dirty {
			return "", nil
		}
		j.ours, j.key.ours, j.key.mine = path, s.stored[m.Mine], m.Mine
		s.d.Still(m.Mine)
	} else if e.Data {
		j.ours = s.c.cache.Local().Path(e.ID)
	}
	switch pos := m.Base.Pos; {
	case m.Base == (kml.Base{}): // nothing is common to both
	default:
		if m.Base.Seq != 0 {
			pos, _ = s.c.cache.Origin(kml.Origin{Site: s.s.Host.Site, Seq: m.Base.Seq})
		}
		if j.base = s.c.cache.BasePath(m.OID, pos); !exists(j.base) {
			s.c.log.Info("versions of a file are not joined: what they were made from is not here", "oid", m.OID, "version", pos)
			return "", nil
		}
	}
	if path, known := s.c.needs.merged(j.key); known {
		return path, nil
	}
	if theirs.Attr.Size > 0 {
		var err error
		if j.theirs, err = s.theirs(m.OID, theirs.DataVersion); err != nil || j.theirs == "" {
			return "", err
		}
	}
	return "", &needError{join: &j}
}

// theirs is a file with a version of the master's; "" when it cannot be had. It
// stays where it is.
func (s *settling) theirs(oid kml.OID, version kml.Position) (string, error) {
	if obj, err := s.c.cache.MasterObject(oid); err == nil && obj.DataVersion == version && obj.Whole && s.d.WrittenBy(oid, 0) == 0 {
		if path, dirty, err := s.c.cache.OwnBytes(oid); err == nil && !dirty && path == s.c.cache.VersionPath(oid, version) {
			return path, nil
		}
	}
	k := fetchKey{oid, version}
	path, known := s.c.needs.version(k)
	if !known {
		return "", &needError{fetch: &k}
	}
	return path, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func sizeOf(path string) (int64, error) {
	st, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// linkOrCopy makes to the bytes of from, which do not change any more.
func linkOrCopy(from, to string) error {
	err := os.Link(from, to)
	if err == nil || !errors.Is(err, unix.EMLINK) && !errors.Is(err, unix.EXDEV) {
		return err
	}
	return copyTo(from, to)
}

// copyTo makes to a copy of from.
func copyTo(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}
