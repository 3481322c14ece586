package tree

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// A watcher listens to fanotify(7) for edits of the directory that do not go
// through the tree: an editor, rsync, git. An event only says where to look,
// since merging loses the order of events; what is journaled is what
// reconcileName finds there. Events of this process are the tree's own and are
// dropped by the reading goroutine. A queue that overflows leads to a scan.
//
// Each folder gets a mark of its own. Where they are many, one mark on the file
// system covers every folder instead, with CAP_SYS_ADMIN and where the file
// system's handles can be opened again.
type watcher struct {
	t    *Tree
	fd   int
	stop int // an eventfd: readable when the watcher is to end
	pid  int32
	// perDir: every folder is marked by itself.
	perDir    bool
	marksLeft int // of markAll

	root int // descriptor to open handles with

	mu sync.Mutex
	// folders by handle. With perDir it holds the marked ones; else it is a
	// bounded memory of what was looked up, 0 for folders that are not ours: a
	// busy disk has many events that are none of this tree's business.
	folders map[string]kml.OID
	pending map[Name]sight // where to look
	scan    bool           // the kernel lost events
	wake    chan struct{}
}

// sight is what events said of a name.
type sight struct {
	when  time.Time // look not before
	how   hint
	tries int // looks that found it on the move
}

// maxTries bounds them.
const maxTries = 20

const (
	watchNames  = unix.FAN_CREATE | unix.FAN_DELETE | unix.FAN_MOVED_FROM | unix.FAN_MOVED_TO
	watchFiles  = unix.FAN_ATTRIB | unix.FAN_MODIFY | unix.FAN_CLOSE_WRITE
	watchEvents = watchNames | watchFiles | unix.FAN_ONDIR | unix.FAN_EVENT_ON_CHILD
	// settleTime is how long a file must rest from being written before it is
	// looked at without having been closed.
	settleTime = time.Second
	// gatherTime is how long events gather after some were taken; the first ones
	// after a rest are taken at once. The tree's own changes make some, too: each
	// would wake somebody who waits for it, which costs more than the change. The
	// queue has room for more than a million a second.
	gatherTime = 10 * time.Millisecond
	// arriveTime is how long a name that went waits, for what it held to be
	// seen elsewhere.
	arriveTime = 100 * time.Millisecond
)

// watchDir starts the watcher; the tree runs without one where the kernel
// gives none, and then finds foreign edits when they are met.
func (t *Tree) watchDir() error {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|unix.FAN_REPORT_DFID_NAME,
		unix.O_RDONLY|unix.O_CLOEXEC|unix.O_LARGEFILE)
	if err != nil {
		return fmt.Errorf("fanotify_init: %w", err)
	}
	w := &watcher{t: t, fd: fd, pid: int32(os.Getpid()), pending: make(map[Name]sight),
		folders: make(map[string]kml.OID), wake: make(chan struct{}, 1)}
	if w.root, err = unix.Openat(t.rootfd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		unix.Close(fd)
		return err
	}
	if err := w.markAll(); err != nil {
		unix.Close(w.root)
		unix.Close(fd)
		return err
	}
	if w.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(w.root)
		unix.Close(fd)
		return fmt.Errorf("eventfd: %w", err)
	}
	t.watcher = w
	t.wg.Go(w.read)
	t.wg.Go(w.look)
	return nil
}

// maxMarks is how many folders are marked one by one. Their marks hear of
// nothing else, but each keeps an inode in memory; a larger tree is watched
// through its file system, which on a busy disk means many events of others.
const maxMarks = 8192

var errManyFolders = errors.New("more folders than are marked one by one")

// markAll marks each folder the index knows, or, when they are many and it is
// allowed and of use, the file system.
func (w *watcher) markAll() error {
	w.perDir, w.marksLeft = true, maxMarks
	if n := w.t.opt.maxMarks; n != 0 {
		w.marksLeft = n
	}
	err := w.markFolders(kml.RootOID)
	if err == nil {
		return nil
	}
	_ = unix.FanotifyMark(w.fd, unix.FAN_MARK_FLUSH, 0, w.t.rootfd, ".")
	clear(w.folders)
	w.perDir = false
	mark := unix.FanotifyMark(w.fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, watchEvents, w.t.rootfd, ".")
	if mark == nil && w.canOpenHandles() {
		return nil
	}
	if mark == nil {
		_ = unix.FanotifyMark(w.fd, unix.FAN_MARK_FLUSH|unix.FAN_MARK_FILESYSTEM, 0, w.t.rootfd, ".")
	}
	if !errors.Is(err, errManyFolders) {
		return err
	}
	w.perDir, w.marksLeft = true, math.MaxInt
	return w.markFolders(kml.RootOID)
}

func (w *watcher) canOpenHandles() bool {
	h, err := HandleAt(w.t.rootfd, "")
	if err != nil {
		return false
	}
	_, err = w.lookUp(h)
	return err == nil
}

// markFolders marks a folder and those below it, each before its entries are
// listed, so that nothing made meanwhile is missed.
func (w *watcher) markFolders(oid kml.OID) error {
	if w.marksLeft <= 0 {
		return errManyFolders
	}
	w.marksLeft--
	if err := w.markOne(oid); err != nil {
		return err
	}
	for after := ""; ; {
		es, err := w.t.index.Children(oid, after, 1024)
		if err != nil || len(es) == 0 {
			return err
		}
		for _, e := range es {
			o, err := w.t.index.Get(e.OID)
			if err != nil || o.Attr.Mode&unix.S_IFMT != unix.S_IFDIR {
				continue
			}
			if err := w.markFolders(e.OID); err != nil {
				return err
			}
		}
		after = es[len(es)-1].Name
	}
}

func (w *watcher) markOne(oid kml.OID) error {
	ref, err := w.t.dirs.get(oid)
	if err != nil {
		return nil // moved or gone: met when used
	}
	defer ref.release()
	h, err := HandleAt(ref.fd, "")
	if err != nil {
		return err
	}
	return w.markFd(oid, ref.fd, h)
}

// markFd marks the folder behind a descriptor, whose handle is h.
func (w *watcher) markFd(oid kml.OID, fd int, h []byte) error {
	err := unix.FanotifyMark(w.fd, unix.FAN_MARK_ADD|unix.FAN_MARK_ONLYDIR, watchEvents, fd, ".")
	if err != nil {
		return fmt.Errorf("fanotify_mark of folder %v (fs.fanotify.max_user_marks too low?): %w", oid, err)
	}
	w.mu.Lock()
	w.folders[string(h)] = oid
	w.mu.Unlock()
	return nil
}

// made is added for a folder that the tree itself makes, by its descriptor, before
// the index knows of it: others may be at work in it.
func (w *watcher) made(oid kml.OID, fd int, h []byte) {
	if w == nil || !w.perDir {
		return
	}
	if err := w.markFd(oid, fd, h); err != nil {
		w.notWatched(oid, err)
	}
}

// removed hears of a folder that is gone, its mark with it, or that is a stranger
// no more.
func (w *watcher) removed(h []byte) {
	if w == nil {
		return
	}
	w.mu.Lock()
	delete(w.folders, string(h))
	w.mu.Unlock()
}

func (w *watcher) notWatched(oid kml.OID, err error) {
	w.t.logger.Warn("folder is not watched; edits behind the tree's back are found on use", "oid", oid, "err", err)
}

// added hears of a folder that is new in the tree: it is marked where folders
// are marked one by one, and is a stranger no more.
func (w *watcher) added(oid kml.OID) {
	if w == nil {
		return
	}
	if !w.perDir {
		if o, err := w.t.index.Get(oid); err == nil {
			w.removed(o.Handle)
		}
		return
	}
	if err := w.markOne(oid); err != nil {
		w.notWatched(oid, err)
	}
}

// close tells the goroutines to end.
func (w *watcher) close() {
	if w == nil {
		return
	}
	one := binary.NativeEndian.AppendUint64(nil, 1)
	if _, err := unix.Write(w.stop, one); err != nil {
		w.t.logger.Error("ending the watcher", "fileset", w.t.dir, "err", err)
	}
}

// end gives back what the goroutines used, once they are through.
func (w *watcher) end() {
	if w != nil {
		unix.Close(w.root)
		unix.Close(w.fd)
		unix.Close(w.stop)
	}
}

// read takes events off the kernel's queue, in lots. It waits in poll(2): the
// runtime's poller would be woken by every one.
func (w *watcher) read() {
	buf := make([]byte, 256<<10)
	pause := time.NewTimer(0)
	defer pause.Stop()
	var taken time.Time // when there were events last
	for {
		n, err := unix.Read(w.fd, buf)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			err = w.await()
		case err == nil && n > 0:
			w.events(buf[:n])
			continue
		case err == nil:
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				w.t.logger.Error("watching for foreign edits ended", "fileset", w.t.dir, "err", err)
			}
			return
		}
		pause.Reset(gatherTime - time.Since(taken))
		select {
		case <-pause.C:
		case <-w.t.ctx.Done():
		}
		taken = time.Now()
	}
}

// await returns when there are events; os.ErrClosed when the watcher is to end.
func (w *watcher) await() error {
	p := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}, {Fd: int32(w.stop), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(p, -1)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("poll: %w", err)
		case p[1].Revents != 0:
			return os.ErrClosed
		default:
			return nil
		}
	}
}

const metaSize = int(unsafe.Sizeof(unix.FanotifyEventMetadata{}))

// events reads fanotify_event_metadata with its information records behind it.
func (w *watcher) events(b []byte) {
	for len(b) >= metaSize {
		length := int(binary.NativeEndian.Uint32(b))
		if length < metaSize || length > len(b) {
			return
		}
		ev := (*unix.FanotifyEventMetadata)(unsafe.Pointer(&b[0]))
		switch {
		case ev.Mask&unix.FAN_Q_OVERFLOW != 0:
			w.lost()
		case ev.Pid != w.pid || w.perDir && ev.Pid == 0:
			w.info(ev.Mask, b[int(ev.Metadata_len):length])
		}
		b = b[length:]
	}
}

// info reads one event's directory handle and name
// (fanotify_event_info_fid, fanotify(7)).
func (w *watcher) info(mask uint64, b []byte) {
	const hdr, fsid, fh = 4, 8, 8
	if len(b) < hdr+fsid+fh || b[0] != unix.FAN_EVENT_INFO_TYPE_DFID_NAME {
		return
	}
	body := b[hdr+fsid:]
	n := int(binary.NativeEndian.Uint32(body))
	if len(body) < fh+n {
		return
	}
	name := body[fh+n:]
	for i, c := range name {
		if c == 0 {
			name = name[:i]
			break
		}
	}
	typ := binary.NativeEndian.Uint32(body[4:])
	parent, err := w.resolve(handleOf(typ, body[fh:fh+n]))
	if err != nil || len(name) == 0 {
		return // not a folder of this fileset
	}
	if parent == kml.RootOID && string(name) == ExtDirName {
		return
	}
	when := time.Now()
	switch {
	case mask&(unix.FAN_CREATE|unix.FAN_MOVED_TO|unix.FAN_CLOSE_WRITE|unix.FAN_ATTRIB) != 0:
	case mask&(unix.FAN_DELETE|unix.FAN_MOVED_FROM) != 0:
		when = when.Add(arriveTime)
	default:
		when = when.Add(settleTime)
	}
	s := sight{when: when}
	if mask&unix.FAN_MODIFY != 0 {
		s.how |= seenWriting
	}
	if mask&unix.FAN_ATTRIB != 0 {
		s.how |= seenAttrs
	}
	w.note(Name{Parent: parent, Name: string(name)}, s)
}

// maxFolders bounds the memory of folders; it starts anew when it is full.
const maxFolders = 64 << 10

// resolve finds the folder a handle means; ENOENT when it is not ours.
func (w *watcher) resolve(h []byte) (kml.OID, error) {
	w.mu.Lock()
	oid, seen := w.folders[string(h)]
	w.mu.Unlock()
	if seen && oid != 0 {
		return oid, nil
	}
	if seen || w.perDir {
		return 0, syscall.ENOENT
	}
	oid, err := w.lookUp(h)
	if err != nil {
		oid = 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.folders) >= maxFolders {
		clear(w.folders)
	}
	w.folders[string(h)] = oid
	return oid, err
}

// lookUp asks the file system for the inode behind a handle, and the index for
// its object.
func (w *watcher) lookUp(h []byte) (kml.OID, error) {
	typ, raw := splitHandle(h)
	fd, err := unix.OpenByHandleAt(w.root, unix.NewFileHandle(int32(typ), raw), unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	oid, ok := w.t.index.ByIno(st.Ino)
	if !ok {
		return 0, syscall.ENOENT
	}
	o, err := w.t.index.Get(oid)
	if err != nil || string(o.Handle) != string(h) {
		return 0, syscall.ENOENT
	}
	return oid, nil
}

// maxPending bounds what is remembered; more than that is a scan.
const maxPending = 64 << 10

func (w *watcher) note(n Name, s sight) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.pending) >= maxPending {
		w.scan, w.pending = true, make(map[Name]sight)
	}
	s.how |= w.pending[n].how
	w.pending[n] = s
	w.signal()
}

func (w *watcher) lost() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.scan, w.pending = true, make(map[Name]sight)
	w.signal()
}

func (w *watcher) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// look journals what is found at the places events named.
func (w *watcher) look() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-w.t.ctx.Done():
			return
		case <-w.wake:
		case <-timer.C:
		}
		due, scan, next := w.due(time.Now())
		if scan {
			w.t.logger.Warn("events were lost; the whole tree is scanned", "fileset", w.t.dir)
			w.report(w.t.Scan(w.t.ctx), Name{})
		}
		// What is there comes first, so that a name that is gone is seen to
		// have moved and not to have been removed.
		var gone []Name
		for n, s := range due {
			if n.Name == "." { // the folder itself
				w.report(w.t.reconcileFolder(w.t.ctx, n.Parent, s.how), n)
			} else if w.t.onDisk(n) {
				err := w.t.reconcileSeen(w.t.ctx, n.Parent, n.Name, s.how)
				if errors.Is(err, syscall.ESTALE) && s.tries < maxTries && w.t.onDisk(n) {
					// Its folder, or what the tree had of it, moved under the look.
					s.when, s.tries = time.Now().Add(arriveTime), s.tries+1
					w.note(n, s)
					continue
				}
				w.report(err, n)
			} else {
				gone = append(gone, n)
			}
		}
		for _, n := range gone {
			if w.t.leaves(w.t.ctx) { // the scan may find it elsewhere, or has been here before
				w.note(n, sight{when: time.Now().Add(arriveTime)})
				continue
			}
			w.report(w.t.reconcileName(w.t.ctx, n.Parent, n.Name), n)
		}
		if next > 0 {
			timer.Reset(next)
		}
	}
}

// due takes what may be looked at now, with what was seen there, and says
// when the rest may.
func (w *watcher) due(now time.Time) (names map[Name]sight, scan bool, next time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	names = make(map[Name]sight)
	for n, s := range w.pending {
		d := s.when.Sub(now)
		if d <= 0 {
			names[n] = s
			delete(w.pending, n)
		} else if next == 0 || d < next {
			next = d
		}
	}
	scan, w.scan = w.scan, false
	return names, scan, next
}

func (w *watcher) report(err error, n Name) {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ESTALE) {
		return
	}
	w.t.logger.Warn("a foreign edit is not journaled; it is looked at again on use", "parent", n.Parent, "name", n.Name, "err", err)
}
