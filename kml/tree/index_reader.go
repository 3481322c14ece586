package tree

import (
	"errors"
	"runtime/debug"
	"sync"

	bolt "go.etcd.io/bbolt"
)

// reader is a read transaction of an index's file. One goroutine uses it at a
// time.
type reader struct {
	tx   *bolt.Tx
	open []openBucket
}

type openBucket struct {
	name *byte // the first of one of buckets, which are no two the same
	b    *bolt.Bucket
}

// bucket is one of buckets.
func (r *reader) bucket(name []byte) *bolt.Bucket {
	for _, o := range r.open {
		if o.name == &name[0] {
			return o.b
		}
	}
	b := r.tx.Bucket(name)
	r.open = append(r.open, openBucket{&name[0], b})
	return b
}

// readers keeps transactions for the next look-up: to begin one costs more than
// to look something up. They are of the file's present state. None is kept while
// the file is written, so that bbolt can use what they hold of it again, and map
// it anew. Index.mu is held, for reading at least, while one is out.
type readers struct {
	mu   sync.Mutex
	idle []*reader
	shut bool
}

// maxIdle is how many are kept.
const maxIdle = 16

func (p *readers) take() *reader {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.idle)
	if n == 0 {
		return nil
	}
	r := p.idle[n-1]
	p.idle = p.idle[:n-1]
	return r
}

// give takes back a transaction; false: its user ends it.
func (p *readers) give(r *reader) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shut || len(p.idle) >= maxIdle {
		return false
	}
	p.idle = append(p.idle, r)
	return true
}

// close ends those that are kept, and keeps none until reopen.
func (p *readers) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shut = true
	var err error
	for _, r := range p.idle {
		err = errors.Join(err, r.tx.Rollback())
	}
	clear(p.idle)
	p.idle = p.idle[:0]
	return err
}

// reopen is called with Index.mu held for writing: all that were out when the
// file was written have ended.
func (p *readers) reopen() {
	p.mu.Lock()
	p.shut = false
	p.mu.Unlock()
}

// look is view for one look-up. The caller holds mu.
func (x *Index) look(f func(r *reader) error) (err error) {
	defer x.guard(&err, debug.SetPanicOnFault(true))
	r := x.readers.take()
	if r == nil {
		tx, err := x.db.Begin(false)
		if err != nil {
			return err
		}
		r = &reader{tx: tx}
	}
	whole := false // until f has come back, and not by a damaged page
	defer func() {
		if whole && x.readers.give(r) {
			return
		}
		if e := r.tx.Rollback(); err == nil {
			err = e
		}
	}()
	err = f(r)
	whole = true
	return err
}
