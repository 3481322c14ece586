package tree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	bolt "go.etcd.io/bbolt"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/local"
)

// What the file clean says: which run of the machine has the cache open, or that
// nobody has.
const (
	cleanMark = "clean"
	cleanText = "clean\n"
)

// crashed reports whether the machine went down with the cache open.
func (c *Cache) crashed() (bool, error) {
	last, err := os.ReadFile(c.state.Path(cleanMark))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // a new cache
	}
	return string(last) != cleanText && strings.TrimSpace(string(last)) != c.opt.Boot.ID, err
}

// beginRun notes that the cache is open, and is on the disk when it returns: a
// crash must not find that nobody had it.
func (c *Cache) beginRun() error {
	if err := renameio.WriteFile(c.state.Path(cleanMark), []byte(c.opt.Boot.ID), 0o600); err != nil {
		return err
	}
	return syncDir(c.state.Path())
}

// afterCrash takes the cache back to what is known to be on the disk. The index
// may say of bytes that they are present that the disk never got: contents are
// fetched again. Of what was written here and not synced contents may be missing:
// the local log goes back to where it is whole.
func (c *Cache) afterCrash() error {
	for _, e := range c.log.Entries() {
		if err := c.rescue(e); err != nil {
			return err
		}
	}
	n, err := c.log.Recover()
	if err != nil {
		return err
	}
	c.forgotten = n
	c.logger.Warn("machine went down while the cache was open; contents are fetched again", "path", c.dir, "changes_lost", n)
	for slot := range c.dirty.All() {
		c.dirty.Clear(slot)
	}
	// What the index says of bytes goes before they do: a file that is begun anew
	// must never be taken for one that is there.
	if err := c.index.Load().forgetBytes(); err != nil {
		return err
	}
	return c.dropFiles(true)
}

// forgetBytes makes every object one of which nothing is present, on the disk.
func (x *Index) forgetBytes() error {
	var list []kml.OID
	err := x.view(func(tx *bolt.Tx) error {
		return tx.Bucket(buckets.obj).ForEach(func(k, _ []byte) error {
			list = append(list, kml.OID(binary.BigEndian.Uint64(k)))
			return nil
		})
	})
	for len(list) > 0 && err == nil {
		n := min(len(list), 1024)
		err = x.Update(func(b *Batch) error {
			for _, oid := range list[:n] {
				if err := b.forgetBytes(oid); err != nil {
					return err
				}
			}
			return nil
		})
		list = list[n:]
	}
	return errors.Join(err, x.Flush())
}

// forgetBytes makes an object one of which nothing is present.
func (b *Batch) forgetBytes(oid kml.OID) error {
	obj, err := b.Get(oid)
	if err != nil || !obj.Whole && len(obj.Present) == 0 {
		return ignore(err, ErrNotFound)
	}
	n := *obj
	n.Whole, n.Present = false, nil
	return b.Put(&n)
}

// rescue keeps the contents of a change that came back and that the master may
// have lost: only the version's file has them.
func (c *Cache) rescue(e *local.Entry) error {
	r, raw := e.Now()
	path := c.log.Path(e.ID)
	if !e.Data || raw == nil || r.Digest == nil {
		return nil
	}
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	names, err := filepath.Glob(c.objectPath(r.OID, 0)[:len(c.objectPath(r.OID, 0))-16] + "*")
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, _, ok := parseObjectFile(filepath.Base(name)); ok && local.HasDigest(name, r.Digest) {
			return os.Link(name, path)
		}
	}
	return nil
}

// Forgotten is how many changes made here a crash of the machine took when the
// cache was opened: they were made within CacheOptions.SyncEvery before it, and
// nobody was told that they were durable.
func (c *Cache) Forgotten() int { return c.forgotten }

// kickSync says that there is something to make durable.
func (c *Cache) kickSync() {
	select {
	case c.toSync <- struct{}{}:
	default:
	}
}

// syncLoop makes what was changed here durable soon after it was. It sleeps while
// nothing is.
func (c *Cache) syncLoop() {
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-c.toSync:
		}
		select {
		case <-c.ctx.Done():
			return
		case <-time.After(c.opt.SyncEvery):
		}
		if !c.log.Behind() {
			continue
		}
		if err := c.log.Sync(); err != nil {
			c.logger.Warn("changes are not durable yet; it is tried again", "path", c.dir, "err", fmt.Errorf("sync: %w", err))
			c.kickSync()
		}
	}
}
