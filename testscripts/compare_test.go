package testscripts

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
)

// node is what a record says of one name.
type node struct {
	oid    kml.OID
	attr   kml.Attr
	target string
}

// compareWithIndex compares the folder dir with a snapshot of its index, which
// its master is asked for.
func compareWithIndex(dir string) error {
	nodes, err := snapshotNodes(filepath.Join(dir, ".mezzo", "socket"))
	if err != nil {
		return err
	}
	return compareNodes(dir, nodes)
}

// snapshotNodes reads the whole tree as a snapshot tells it.
func snapshotNodes(socket string) (map[string]node, error) {
	d, err := dialPlain(socket)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	places := map[kml.OID]string{kml.RootOID: "."}
	nodes, byOID := map[string]node{}, map[kml.OID]node{}
	take := func(r *kml.Record) error {
		if r.OID == kml.RootOID {
			return nil
		}
		parent, ok := places[r.Parent]
		if !ok {
			return fmt.Errorf("snapshot: %q in %v, which did not come before", r.Name, r.Parent)
		}
		p := path.Join(parent, r.Name)
		n := node{r.OID, r.Attr, r.Target}
		if r.Op == kml.OpLink {
			n = byOID[r.OID]
		}
		nodes[p], byOID[r.OID] = n, n
		if r.Op == kml.OpMkdir {
			places[r.OID] = p
		}
		return nil
	}
	err = d.at(".mezzo/snapshot", func(f p9.File) error {
		if _, _, err := f.Open(p9.ReadWrite); err != nil {
			return err
		}
		if _, err := f.WriteAt([]byte(feed.SnapshotRequest{OID: kml.RootOID, Depth: -1}.String()), 0); err != nil {
			return err
		}
		return eachFrame(f, func(m feed.Message) (bool, error) {
			switch m := m.(type) {
			case *feed.Entry:
				return false, take(m.Record)
			case *feed.Failure:
				return true, m
			case *feed.SnapEnd:
				return true, nil
			}
			return false, nil
		})
	})
	return nodes, err
}

// eachFrame reads frames from f until use is done.
func eachFrame(f io.ReaderAt, use func(feed.Message) (bool, error)) error {
	var d feed.Decoder
	buf := make([]byte, 64<<10)
	for off := int64(0); ; {
		n, err := f.ReadAt(buf, off)
		if n == 0 {
			return errors.Join(io.ErrUnexpectedEOF, err)
		}
		off += int64(n)
		if _, err := d.Write(buf[:n]); err != nil {
			return err
		}
		for {
			fr, ok, err := d.Next()
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			m, err := fr.Message()
			if err != nil {
				return err
			}
			if done, err := use(m); done || err != nil {
				return err
			}
		}
	}
}

// compareWithLog replays the log of dir, which nobody serves, from nothing, and
// compares the outcome with the folder.
func compareWithLog(dir string) error {
	log, err := kml.Open(filepath.Join(dir, ".mezzo", "kml"), kml.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer log.Close()
	r, err := log.ReaderAfter(0)
	if err != nil {
		return err
	}
	defer r.Close()
	m := replayed{objects: map[kml.OID]*node{kml.RootOID: {oid: kml.RootOID}}, names: map[placeOf]kml.OID{}}
	for {
		rec, err := r.TryNext()
		if err == io.EOF {
			return compareNodes(dir, m.paths())
		}
		if err != nil {
			return err
		}
		if err := m.apply(rec); err != nil {
			return fmt.Errorf("%s: %w", kml.AppendText(nil, rec), err)
		}
	}
}

// placeOf is a name in a folder.
type placeOf struct {
	parent kml.OID
	name   string
}

// replayed is a tree made of records alone, by the shortest reading of what
// each one says.
type replayed struct {
	objects map[kml.OID]*node
	names   map[placeOf]kml.OID
}

// named says that an object has a name.
func (m *replayed) named(oid kml.OID) bool {
	for _, o := range m.names {
		if o == oid {
			return true
		}
	}
	return false
}

func (m *replayed) apply(r *kml.Record) error {
	here, there := placeOf{r.Parent, r.Name}, placeOf{r.NewParent, r.NewName}
	switch r.Op {
	case kml.OpMark:
		return nil
	case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod:
		if _, taken := m.names[here]; taken {
			return errors.New("the name is taken")
		}
		if m.objects[r.OID] != nil && (r.Flags&kml.FlagConflict == 0 || m.named(r.OID)) {
			return errors.New("the oid is in use") // a conflict makes again what was removed
		}
		m.objects[r.OID] = &node{r.OID, r.Attr, r.Target}
		m.names[here] = r.OID
	case kml.OpLink:
		if _, taken := m.names[here]; taken {
			return errors.New("the name is taken")
		}
		m.names[here] = r.OID
	case kml.OpUnlink, kml.OpRmdir:
		if m.names[here] != r.OID {
			return fmt.Errorf("the name holds %v", m.names[here])
		}
		delete(m.names, here)
	case kml.OpRename:
		if m.names[here] != r.OID {
			return fmt.Errorf("the old name holds %v", m.names[here])
		}
		old, taken := m.names[there]
		if taken != (r.Victim != nil) || taken && old != r.Victim.OID {
			return fmt.Errorf("the new name holds %v", old)
		}
		delete(m.names, here)
		m.names[there] = r.OID
		if r.Flags&kml.FlagExchange != 0 {
			m.names[here] = old
		}
	}
	return m.applyAttr(r)
}

func (m *replayed) applyAttr(r *kml.Record) error {
	o := m.objects[r.OID]
	if o == nil {
		return errors.New("no such object")
	}
	switch r.Op {
	case kml.OpStore:
		o.attr.Size, o.attr.Mtime = r.Attr.Size, r.Attr.Mtime
	case kml.OpSetattr:
		for _, f := range []struct {
			mask kml.AttrMask
			set  func()
		}{
			{kml.MaskMode, func() { o.attr.Mode = r.Attr.Mode }}, {kml.MaskUID, func() { o.attr.UID = r.Attr.UID }},
			{kml.MaskGID, func() { o.attr.GID = r.Attr.GID }}, {kml.MaskMtime, func() { o.attr.Mtime = r.Attr.Mtime }},
		} {
			if r.Mask&f.mask != 0 {
				f.set()
			}
		}
	}
	for parent, mtime := range map[kml.OID]int64{r.Parent: r.ParentMtime, r.NewParent: r.NewParentMtime} {
		if p := m.objects[parent]; p != nil && mtime != 0 {
			p.attr.Mtime = mtime
		}
	}
	return nil
}

// paths is the tree by path.
func (m *replayed) paths() map[string]node {
	children := map[kml.OID][]placeOf{}
	for p := range m.names {
		children[p.parent] = append(children[p.parent], p)
	}
	all := map[string]node{}
	var walk func(oid kml.OID, at string)
	walk = func(oid kml.OID, at string) {
		for _, c := range children[oid] {
			child, p := m.names[c], path.Join(at, c.name)
			all[p] = *m.objects[child]
			walk(child, p)
		}
	}
	walk(kml.RootOID, ".")
	return all
}

// compareNodes compares the folder dir with what records say of it.
func compareNodes(dir string, nodes map[string]node) error {
	var diffs []string
	inodes := map[uint64]kml.OID{}
	seen := map[string]bool{}
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel := strings.TrimPrefix(p, dir+"/")
		if rel == ".mezzo" {
			return filepath.SkipDir
		}
		seen[rel] = true
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		n, ok := nodes[rel]
		if !ok {
			diffs = append(diffs, fmt.Sprintf("%q: only in the folder", rel))
			return nil
		}
		size := st.Size
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			size = int64(n.attr.Size) // of a folder or link it is the file system's business
		}
		folder := fmt.Sprintf("%o %d:%d size %d mtime %d", st.Mode, st.Uid, st.Gid, size, st.Mtim.Nano())
		record := fmt.Sprintf("%o %d:%d size %d mtime %d", n.attr.Mode, n.attr.UID, n.attr.GID, n.attr.Size, n.attr.Mtime)
		if folder != record {
			diffs = append(diffs, fmt.Sprintf("%q:\n\tfolder  %s\n\trecords %s", rel, folder, record))
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			if target, err := os.Readlink(p); err != nil || target != n.target {
				diffs = append(diffs, fmt.Sprintf("%q: target %q, records say %q (%v)", rel, target, n.target, err))
			}
		}
		if oid, again := inodes[st.Ino]; again && oid != n.oid {
			diffs = append(diffs, fmt.Sprintf("%q: one inode is %v and %v", rel, oid, n.oid))
		}
		inodes[st.Ino] = n.oid
		return nil
	})
	for rel := range nodes {
		if !seen[rel] {
			diffs = append(diffs, fmt.Sprintf("%q: only in the records", rel))
		}
	}
	if len(diffs) > 0 {
		sort.Strings(diffs)
		return errors.Join(err, errors.New(strings.Join(diffs[:min(20, len(diffs))], "\n")))
	}
	return err
}
