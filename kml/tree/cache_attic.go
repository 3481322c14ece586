package tree

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// attic is what a cache keeps of the master's tree for as long as changes made here
// may be in conflict with it, a file each in the folder attic:
//
//	OID.grave    what an object was that the master removed
//	OID.bytes    the contents of one
//	OID.VERSION  contents that were changed here, or there, as they were before
type attic struct {
	dir string

	mu     sync.Mutex
	graves map[kml.OID]*grave
	files  map[string]kml.OID
}

// grave is an object that the master removed.
type grave struct {
	obj   *Object
	whole bool // its bytes are kept
}

const (
	graveSuffix = ".grave"
	bytesSuffix = ".bytes"
	maxGraves   = 1 << 14 // more are not remembered
)

// graveFile is the text of a grave. Names are bytes, which strings in JSON are not.
type graveFile struct {
	Parent, OID kml.OID
	Name        []byte
	Target      []byte
	Attr        kml.Attr
	Xattrs      []kml.Xattr
	DataVersion kml.Position
	Ctime       int64
}

func openAttic(dir string) (*attic, error) {
	k := &attic{dir: dir, graves: make(map[kml.OID]*grave), files: make(map[string]kml.OID)}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	es, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range es {
		text, rest, _ := strings.Cut(e.Name(), ".")
		oid, err := strconv.ParseUint(text, 16, 64)
		if err != nil {
			continue
		}
		k.files[e.Name()] = kml.OID(oid)
		if "."+rest != graveSuffix {
			continue
		}
		var g graveFile
		b, err := os.ReadFile(k.path(e.Name()))
		if err == nil {
			err = json.Unmarshal(b, &g)
		}
		if err != nil {
			continue // being written by a killed process
		}
		obj := &Object{OID: g.OID, Parent: g.Parent, Name: string(g.Name), Target: string(g.Target), Attr: g.Attr, Xattrs: g.Xattrs,
			DataVersion: g.DataVersion, Ctime: g.Ctime}
		_, err = os.Stat(k.path(atticName(obj.OID, bytesSuffix)))
		k.graves[obj.OID] = &grave{obj, err == nil}
	}
	return k, nil
}

func (k *attic) path(name string) string { return k.dir + "/" + name }

func atticName(oid kml.OID, suffix string) string { return fmt.Sprintf("%016x%s", uint64(oid), suffix) }

func baseName(oid kml.OID, v kml.Position) string {
	return atticName(oid, fmt.Sprintf(".%016x", uint64(v)))
}

// bury keeps an object that the master removed, and the bytes at path unless that
// is "": they are taken.
func (k *attic) bury(o *Object, path string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.graves) >= maxGraves {
		return nil
	}
	g := &grave{obj: o}
	if path != "" {
		err := os.Rename(path, k.path(atticName(o.OID, bytesSuffix)))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if g.whole = err == nil; g.whole {
			k.files[atticName(o.OID, bytesSuffix)] = o.OID
		}
	}
	text, err := json.Marshal(graveFile{o.Parent, o.OID, []byte(o.Name), []byte(o.Target), o.Attr, o.Xattrs, o.DataVersion, o.Ctime})
	if err != nil {
		return err
	}
	name := atticName(o.OID, graveSuffix)
	if err := os.WriteFile(k.path(name), text, 0o600); err != nil {
		return err
	}
	k.files[name], k.graves[o.OID] = o.OID, g
	return nil
}

// base keeps the bytes of a version under another name of theirs; no path is no
// bytes.
func (k *attic) base(oid kml.OID, v kml.Position, path string) {
	name := baseName(oid, v)
	k.mu.Lock()
	defer k.mu.Unlock()
	err := error(nil)
	if path == "" {
		err = os.WriteFile(k.path(name), nil, 0o600)
	} else {
		err = os.Link(path, k.path(name))
	}
	if err == nil || errors.Is(err, fs.ErrExist) {
		k.files[name] = oid
	}
}

// tidy lets go what no change needs any more.
func (k *attic) tidy(needed func(oid kml.OID, folder bool) bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, oid := range k.files {
		g := k.graves[oid]
		if needed(oid, g != nil && g.obj.Attr.Mode&unix.S_IFMT == unix.S_IFDIR) {
			continue
		}
		if err := os.Remove(k.path(name)); err == nil || errors.Is(err, fs.ErrNotExist) {
			delete(k.files, name)
			if strings.HasSuffix(name, graveSuffix) {
				delete(k.graves, oid)
			}
		}
	}
}

// TidyAttic lets go what was kept for changes made here that are the master's now.
func (c *Cache) TidyAttic() {
	c.attic.mu.Lock()
	n := len(c.attic.files)
	c.attic.mu.Unlock()
	if n == 0 {
		return
	}
	c.amu.Lock()
	defer c.amu.Unlock()
	c.attic.tidy(c.needed)
}

// needed reports whether changes made here may be in conflict with what became of
// an object; any may with what became of a folder. The caller holds amu.
func (c *Cache) needed(oid kml.OID, folder bool) bool {
	if c.changedHere(oid, folder) {
		return true
	}
	if o := c.objects.find(oid); o != nil {
		defer c.objects.release(o)
		o.mu.RLock()
		defer o.mu.RUnlock()
		if o.local {
			return true
		}
	}
	return folder && c.objects.anyDirty()
}

// changedHere reports whether the local log has changes of an object, or any for
// a folder.
func (c *Cache) changedHere(oid kml.OID, folder bool) bool {
	c.view.mu.RLock()
	defer c.view.mu.RUnlock()
	return c.view.objs[oid] != nil || folder && len(c.view.objs) > 0
}

// anyDirty reports whether anything was written to since its last store.
func (t *cacheObjects) anyDirty() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, o := range t.m {
		if o.last.Load() != 0 {
			return true
		}
	}
	return false
}

// Grave is what an object was that the master removed and that changes made here
// need, or nil. whole says that its bytes are here.
func (c *Cache) Grave(oid kml.OID) (o *Object, whole bool) {
	if o, whole = c.graveOf(oid); o != nil {
		return o, whole
	}
	k := c.objects.find(oid)
	if k == nil {
		return nil, false
	}
	defer c.objects.release(k)
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.gone, false
}

func (c *Cache) graveOf(oid kml.OID) (o *Object, whole bool) {
	c.attic.mu.Lock()
	defer c.attic.mu.Unlock()
	if g := c.attic.graves[oid]; g != nil {
		return g.obj, g.whole
	}
	return nil, false
}

// GravePath is where the bytes of a Grave are that is whole, BasePath those of a
// version that was changed since; there may be none.
func (c *Cache) GravePath(oid kml.OID) string { return c.attic.path(atticName(oid, bytesSuffix)) }

// BasePath is where the bytes of a version are that was changed since.
func (c *Cache) BasePath(oid kml.OID, v kml.Position) string { return c.attic.path(baseName(oid, v)) }

// keepBase keeps the bytes of a version that is about to go, when they are all
// here and may be needed to join changes. The caller holds o.mu.
func (c *Cache) keepBase(o *cacheObject, obj *Object) {
	switch {
	case obj.Attr.Mode&unix.S_IFMT != unix.S_IFREG || obj.DataVersion == 0 || !c.up.Joins(o.oid):
	case obj.Attr.Size == 0:
		c.attic.base(o.oid, obj.DataVersion, "")
	case obj.Whole:
		c.attic.base(o.oid, obj.DataVersion, c.objectPath(o.oid, obj.DataVersion))
	}
}
