package tree

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
)

// SyncMode says when changes are made durable without being asked.
type SyncMode uint8

// The modes.
const (
	SyncInterval SyncMode = iota // every now and then
	SyncAlways                   // each change before it is answered; callers at the same time share a commit
	SyncNever                    // by an fsync, at Close, and after a great many changes
)

// unsynced is what the records since the last commit touched. Few objects are
// synced one by one, many with one syncfs(2).
type unsynced struct {
	oids map[kml.OID]struct{}
	all  bool
}

const maxSingleSyncs = 16

func (u *unsynced) add(oids ...kml.OID) {
	if u.all {
		return
	}
	if u.oids == nil {
		u.oids = make(map[kml.OID]struct{})
	}
	for _, o := range oids {
		if o != 0 {
			u.oids[o] = struct{}{}
		}
	}
	if len(u.oids) > maxSingleSyncs {
		u.all, u.oids = true, nil
	}
}

// touched notes what a commit of r has to sync. The caller holds jmu.
func (t *Tree) touched(r *kml.Record) {
	if r.Op&^kml.OpOptional != kml.OpMark {
		t.fresh.add(r.OID, r.Parent, r.NewParent)
	}
}

// commit makes tree and log durable up to now, in this order: a log that is
// durable ahead of its tree would tell of bytes that a crash took.
func (t *Tree) commit(ctx context.Context) error {
	t.cmu.Lock()
	defer t.cmu.Unlock()
	if err := t.broken(); err != nil {
		return err
	}
	if err := t.recheck(ctx); err != nil {
		return err
	}
	t.jmu.Lock()
	end, what := t.log.End(), t.fresh
	t.fresh = unsynced{}
	t.index.Mark()
	t.jmu.Unlock()
	if end <= t.log.Durable() {
		return nil
	}
	if err := t.synced(t.sync(ctx, what)); err != nil {
		t.jmu.Lock()
		t.fresh = unsynced{all: true}
		t.jmu.Unlock()
		return err
	}
	if t.unsure.Load() {
		return fmt.Errorf("an fsync failed meanwhile: %w", syscall.EIO)
	}
	fault.Point("tree.commit.synced")
	err := t.log.CommitUpTo(end)
	if stopped := t.log.Failed(); stopped != nil {
		return t.breakDown(stopped)
	}
	if err != nil {
		return err
	}
	fault.Point("tree.commit.marked")
	t.index.Firmer()
	return nil
}

func (t *Tree) sync(ctx context.Context, what unsynced) error {
	if !what.all {
		for oid := range what.oids {
			ok, err := t.syncOne(ctx, oid)
			if err != nil {
				return err
			}
			if !ok {
				what.all = true
				break
			}
		}
	}
	if !what.all {
		return nil
	}
	fd, err := unix.Openat(t.rootfd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Syncfs(fd)
}

// syncOne syncs a file or folder; ok is false for what cannot be opened for
// it, such as a symbolic link.
func (t *Tree) syncOne(ctx context.Context, oid kml.OID) (ok bool, err error) {
	if _, err := t.index.Get(oid); errors.Is(err, ErrNotFound) {
		return true, nil // gone: its folder tells
	}
	if o := t.objects.find(oid); o != nil {
		defer t.objects.release(o)
		if fd, back, ok := t.objects.borrow(o); ok {
			defer back()
			return true, unix.Fsync(fd)
		}
	}
	p, err := t.open(ctx, oid)
	if err != nil {
		return false, nil
	}
	defer unix.Close(p.fd)
	var st unix.Stat_t
	if err := unix.Fstat(p.fd, &st); err != nil {
		return false, err
	}
	if m := st.Mode & unix.S_IFMT; m != unix.S_IFREG && m != unix.S_IFDIR {
		return false, nil
	}
	fd, err := unix.Open(p.path(), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, nil
	}
	defer unix.Close(fd)
	return true, unix.Fsync(fd)
}

// Waits is Waiter.Waits: callers of changes at the same time share a commit.
func (t *Tree) Waits() bool { return t.opt.Sync == SyncAlways }

// answer ends a change that was made: under SyncAlways it waits until the change
// is durable. The caller holds no lock.
func (t *Tree) answer(err error) error {
	if err == nil && t.opt.Sync == SyncAlways {
		return t.commit(t.ctx)
	}
	t.relieve()
	return err
}

// relieve makes a commit when so many changes stand in memory, and may not go to
// the index's file before, that somebody has to wait. The caller holds no lock.
func (t *Tree) relieve() {
	if !t.index.Pressed() {
		return
	}
	t.rmu.Lock()
	defer t.rmu.Unlock()
	if !t.index.Pressed() || t.broken() != nil {
		return
	}
	if err := t.commit(t.ctx); err != nil && t.ctx.Err() == nil {
		t.logger.Warn("commit not made; it is tried again", "fileset", t.dir, "err", err)
	}
}

// Commit makes everything up to now durable, tree and log.
func (t *Tree) Commit(ctx context.Context) error { return t.commit(ctx) }

// commitLoop commits every now and then.
func (t *Tree) commitLoop() {
	tick := time.NewTicker(t.opt.SyncEvery)
	defer tick.Stop()
	for {
		select {
		case <-t.ctx.Done():
			return
		case <-tick.C:
			if err := t.commit(t.ctx); err != nil && t.ctx.Err() == nil {
				t.logger.Warn("commit not made; it is tried again", "fileset", t.dir, "err", err)
			}
		}
	}
}

// kickCutter wakes cutLoop for an object that became open-dirty.
func (t *Tree) kickCutter() {
	select {
	case t.kick <- struct{}{}:
	default:
	}
}

// cutLoop cuts the stores of files that stay open: after a pause in writing,
// and now and then under steady writing. It sleeps while nothing is open-dirty.
func (t *Tree) cutLoop() {
	for {
		select {
		case <-t.ctx.Done():
			return
		case <-t.kick:
		}
		for wait := t.cutDue(); wait > 0; wait = t.cutDue() {
			select {
			case <-t.ctx.Done():
				return
			case <-time.After(wait):
			}
		}
	}
}

// cutDue cuts what is due and says when to look again; 0 when nothing is
// open-dirty.
func (t *Tree) cutDue() time.Duration {
	now := t.now().UnixNano()
	wait := time.Duration(0)
	for _, o := range t.objects.dirtyList() {
		o.dmu.Lock()
		idle := time.Duration(o.last + int64(t.opt.StoreIdle) - now)
		busy := time.Duration(o.first + int64(t.opt.StoreBusy) - now)
		o.dmu.Unlock()
		due := min(idle, busy)
		if due <= 0 {
			if err := t.cut(o); err != nil {
				t.logger.Warn("store not cut; it is tried again", "oid", o.oid, "err", err)
				due = t.opt.StoreIdle
			}
		}
		if due > 0 && (wait == 0 || due < wait) {
			wait = due
		}
		t.objects.release(o)
	}
	return wait
}
