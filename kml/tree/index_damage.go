package tree

import (
	"errors"
	"fmt"
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
	if errors.Is(*err, errObject) {
		*err = fmt.Errorf("%s: %w: %w", x.db.Path(), ErrIndexDamaged, *err)
	}
	if errors.Is(*err, ErrIndexDamaged) && x.bad.CompareAndSwap(false, true) {
		e := os.Rename(x.path, x.path+damagedSuffix)
		x.logger.Error("index is damaged; it is made again from the log at the next start", "err", *err, "rename", e)
	}
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
	return bolt.Open(path, 0o600, o)
}
