package tree

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"runtime/debug"

	bolt "go.etcd.io/bbolt"
)

// damagedSuffix is what an index's file is renamed with when it is found to be
// damaged inside: the next opener makes a new one from the log.
const damagedSuffix = ".damaged"

// view is bolt's View, and update its Update, with an error instead of the
// panics and memory faults that a damaged page leads to.
func (x *Index) view(f func(tx *bolt.Tx) error) (err error) {
	defer x.guard(&err, debug.SetPanicOnFault(true))
	return x.db.View(f)
}

func (x *Index) update(f func(tx *bolt.Tx) error) (err error) {
	if x.bad.Load() {
		return ErrIndexDamaged // a damaged file is not written to
	}
	defer x.guard(&err, debug.SetPanicOnFault(true))
	return x.db.Update(f)
}

func (x *Index) guard(err *error, onFault bool) {
	debug.SetPanicOnFault(onFault)
	if p := recover(); p != nil {
		*err = fmt.Errorf("%s: %w: %v", x.db.Path(), ErrIndexDamaged, p)
	}
	if *err == nil && x.torn.Load() {
		*err = fmt.Errorf("%s: %w", x.db.Path(), errSeal)
	}
	if errors.Is(*err, errObject) {
		*err = fmt.Errorf("%s: %w: %w", x.db.Path(), ErrIndexDamaged, *err)
	}
	if errors.Is(*err, ErrIndexDamaged) && x.bad.CompareAndSwap(false, true) {
		e := os.Rename(x.path, x.path+damagedSuffix)
		x.logger.Error("index is damaged; it is made again from the log at the next start", "err", *err, "rename", e)
	}
}

// errSeal is a value that is not what was written under its key.
var errSeal = fmt.Errorf("an entry fails its CRC: %w", ErrIndexDamaged)

// seal is a value as the file has it: with a CRC-32C over key and value, which
// bbolt lacks.
func seal(k, v []byte) []byte {
	b := append(make([]byte, 0, len(v)+4), v...)
	return binary.LittleEndian.AppendUint32(b, sealOf(k, v))
}

func sealOf(k, v []byte) uint32 {
	return crc32.Update(crc32.Checksum(k, castagnoli), castagnoli, v)
}

// sealed is the value that was sealed, as long as the transaction lasts.
func sealed(k, b []byte) (v []byte, ok bool) {
	if len(b) < 4 {
		return nil, false
	}
	v = b[:len(b)-4]
	return v, binary.LittleEndian.Uint32(b[len(v):]) == sealOf(k, v)
}

// crcOf is the CRC of a sealed value.
func crcOf(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.LittleEndian.Uint32(b[len(b)-4:])
}

// entries calls f with every entry of the file, by the number of its bucket in
// kept. It fails when the file has other entries than were written to it:
// damage of bbolt's pages can hide some, or show old ones.
func entries(tx *bolt.Tx, f func(bucket int, k, v []byte) error) error {
	want, err := stateOf(tx)
	if err != nil {
		return err
	}
	have := fileState{cursor: want.cursor, crc: want.crc}
	for i, name := range kept() {
		b := tx.Bucket(name)
		if b == nil {
			return fmt.Errorf("no bucket %q: %w", name, ErrIndexDamaged)
		}
		err := b.ForEach(func(k, v []byte) error {
			if have.count(v); have.n > want.n {
				return errEntries
			}
			if v, ok := sealed(k, v); ok {
				return f(i, k, v)
			}
			return errSeal
		})
		if err != nil {
			return err
		}
	}
	if have != want {
		return errEntries
	}
	return nil
}

var errEntries = fmt.Errorf("its entries are not those that were written: %w", ErrIndexDamaged)

// kept are the buckets with what an index knows.
func kept() [][]byte {
	return [][]byte{buckets.obj, buckets.name, buckets.link, buckets.ino, buckets.origin, buckets.site}
}

// checkFirst is Check for a file that is small enough.
func (x *Index) checkFirst() error {
	st, err := os.Stat(x.path)
	if err != nil {
		return err
	}
	if x.whole = st.Size() <= x.opt.CheckMax; !x.whole {
		return nil
	}
	return x.view(func(tx *bolt.Tx) error {
		return entries(tx, func(int, []byte, []byte) error { return nil })
	})
}

// Check reads the whole file, and is ErrIndexDamaged when anything in it is not
// as it was written. It takes about a second for a million files, and holds up
// nobody.
func (x *Index) Check(ctx context.Context) error {
	n := 0
	return x.view(func(tx *bolt.Tx) error {
		return entries(tx, func(int, []byte, []byte) error {
			if n++; n%4096 == 0 {
				return ctx.Err()
			}
			return nil
		})
	})
}

// unseal is sealed with nil for nothing. What is damaged is nothing, too, and the
// read that came upon it fails in the end (see guard).
func (x *Index) unseal(k, b []byte) []byte {
	if b == nil {
		return nil
	}
	v, ok := sealed(k, b)
	if !ok {
		x.torn.Store(true)
		return nil
	}
	return v
}

// value reads what a bucket holds under a key; nil when it holds nothing.
func (x *Index) value(r *reader, bucket, k []byte) []byte {
	return x.unseal(k, r.bucket(bucket).Get(k))
}

// openBolt opens the file; damage where bolt looks first is ErrIndexDamaged.
func openBolt(path string, o *bolt.Options) (db *bolt.DB, err error) {
	onFault := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(onFault)
		if p := recover(); p != nil {
			db, err = nil, fmt.Errorf("%v", p)
		}
	}()
	if err := checkPages(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return bolt.Open(path, 0o600, o)
}
