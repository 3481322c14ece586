package cachefs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mezzofs/mezzo/cachefs/conflicts"
	"github.com/mezzofs/mezzo/cachefs/merge"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/conflict"
	"github.com/mezzofs/mezzo/kml/tree"
)

// Options tune a Client. Dir and Addr must be set.
type Options struct {
	// Dir is the cache's folder; it is made if it does not exist. It belongs to
	// one master's fileset, whose changes of this host wait in it.
	Dir string
	// Addr is the master: unix!PATH, tcp!HOST!PORT, /path or host:port.
	Addr string
	// Host names this installation, in the master's table and in conflict
	// copies; "" is the host's name.
	Host string
	// Uname is who attaches; "" is the user of the process.
	Uname string
	// Logger takes changes of state; nil is silence.
	Logger *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Dead is after how long without a word from the master the link counts as
	// dead; 0 is 6 s. The master says something every 2 s.
	Dead time.Duration
	// Grace is how long after losing the link operations that need the master
	// wait for it to come back before they fail; 0 is 1 s.
	Grace time.Duration
	// Hard makes operations that need the master wait for it, until they are
	// interrupted, but for a client that was told to be offline.
	Hard bool
	// Retry is the longest pause between attempts to connect; 0 is 5 s.
	Retry time.Duration
	// WholeMax, StoreIdle and StoreBusy are the cache's, see tree.CacheOptions.
	WholeMax             uint64
	StoreIdle, StoreBusy time.Duration
	// Sync makes close wait, as fsync does, until the master has the store, and
	// every change of names and attributes until it has decided on it; without a
	// link, close waits until the store is durable here.
	Sync bool

	// Bandwidth is how many bytes a second go each way at most, MinBandwidth or
	// more; 0 is no limit. What is small goes before contents that are not asked
	// for at once.
	Bandwidth int64

	// Aging is how old a change is before it is sent: what was made and removed
	// again, or written over, until then never is. What somebody waits for (fsync,
	// Sync, changes by which programs exclude each other) is sent at once, with
	// all before it.
	Aging time.Duration

	// Programs are the merge programs of this host, by name: a policy of the fileset
	// says where one is used, this what it is.
	Programs merge.Programs

	dial dialer    // nil: p9srv/client
	as   *uint32   // who attaches; nil: the user of the process
	asIs bool      // tests: the local log is sent as it is
	boot tree.Boot // tests: the run of the machine
}

func (o *Options) fill() error {
	if o.Dir == "" || o.Addr == "" {
		return errors.New("a client needs a folder for its cache and the address of its master")
	}
	if o.Bandwidth != 0 && o.Bandwidth < MinBandwidth {
		return fmt.Errorf("a limit of %d bytes a second is less than %d", o.Bandwidth, MinBandwidth)
	}
	if o.Host == "" {
		h, err := os.Hostname()
		if err != nil {
			return err
		}
		o.Host = h
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.Dead, 6*time.Second)
	def(&o.Grace, time.Second)
	def(&o.Retry, 5*time.Second)
	if o.dial == nil {
		o.dial = dial9P
	}
	return nil
}

// Client is a caching client of one master. It is a tree.FS. While it follows
// the master everything it answers is the tree as of its position; when the
// master is away what is present goes on being read, and what was written to
// open files is kept and sent later.
type Client struct {
	o       Options
	log     *slog.Logger
	cache   *tree.Cache
	push    pusher
	out     *rate  // what goes to the master
	in      *rate  // and what comes
	pace    *pacer // of contents that go
	read    *pacer // and of those that come
	lists   flights
	hoard   hoard
	made    made
	locks   locks
	rules   atomic.Pointer[conflict.Policies] // see setPolicies
	aliases aliases
	needs   needs
	skew    atomic.Pointer[time.Duration] // of the master's clock
	// conflicts is where what the tree does not show of two versions is kept.
	conflicts *conflicts.Store

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	closed sync.Once
	endErr error

	mu      sync.Mutex // guards what follows
	state   State
	forced  bool          // there is to be no link
	up      *upstream     // nil unless connected
	changed chan struct{} // closed when state changes
	lost    time.Time     // when the link was lost
	why     error         // why there is none
	heard   time.Time
	end     kml.Position // of the master's log, as last heard
	durable kml.Position
	notes   []Note
}

var (
	_ tree.FS        = (*Client)(nil)
	_ tree.Upstream  = (*Client)(nil)
	_ tree.LockLoser = (*Client)(nil)
)

// Open opens the cache and connects to its master. With a cache that was used
// before a master that cannot be reached is no error: what is present can be
// read, and the client goes on trying. ctx bounds the opening, not the client.
func Open(ctx context.Context, o Options) (*Client, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	c := &Client{o: o, log: o.Logger, state: Disconnected, changed: make(chan struct{})}
	// The client lives until Close, whatever the context of who opened it.
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.push.init()
	c.hoard.init()
	c.push.aging, c.push.now = o.Aging, o.Now
	c.out, c.in = newRate(o.Bandwidth), newRate(o.Bandwidth)
	c.pace = newPacer(func() int { return int(c.out.get()) })
	c.read = newPacer(func() int { return int(c.in.get()) })
	c.locks = newLocks()
	var err error
	c.cache, err = tree.OpenCache(o.Dir, tree.CacheOptions{Upstream: c, Now: o.Now, Logger: o.Logger, WholeMax: o.WholeMax,
		StoreIdle: o.StoreIdle, StoreBusy: o.StoreBusy, SyncClose: o.Sync, Boot: o.boot})
	if err != nil {
		return nil, err
	}
	if c.notes, err = loadNotes(c.notesPath()); err == nil {
		err = c.openHoard()
	}
	if err == nil {
		err = checkOutbox(c.cache.State().Path("outbox"))
	}
	c.made.open(c.cache.State().Path("made"))
	if err != nil {
		return nil, errors.Join(err, c.cache.Close())
	}
	if n := c.cache.Forgotten(); n > 0 {
		c.note("%d changes made here just before this machine went down were not on its disk", n)
	}
	if err := c.loadPolicies(); err != nil {
		return nil, errors.Join(err, c.cache.Close())
	}
	c.needs.init(c)
	if c.conflicts, err = conflicts.Open(c.conflictsDir(), conflicts.Options{Now: o.Now}); err == nil {
		err = c.oldKept()
	}
	if err != nil {
		return nil, errors.Join(err, c.cache.Close())
	}
	used := c.cache.State().Fileset().Upstream != ""
	if _, err := os.Stat(c.offlinePath()); err == nil && used {
		c.forced, c.state = true, Offline
		c.start(nil)
		return c, nil
	}
	up, err := c.connect(ctx)
	if err != nil && (!used || permanent(err)) {
		c.cancel()
		return nil, errors.Join(err, c.cache.Close())
	}
	if err != nil {
		c.log.Warn("master cannot be reached; what is cached can be read", "addr", o.Addr, "err", err)
		c.why = err
	} else {
		c.flush() // a new cache knows nothing else
		c.connected(up)
	}
	c.start(up)
	return c, nil
}

func (c *Client) start(up *upstream) {
	c.wg.Go(func() { c.run(up) })
	c.wg.Go(c.pushLoop)
	c.wg.Go(c.hoardLoop)
}

// Close sends what is left, as long as ctx allows and the master is there, and
// closes the cache. What could not be sent is sent by the next run. It may be
// called twice; handles must be closed before.
func (c *Client) Close(ctx context.Context) error {
	c.closed.Do(func() {
		err := c.cache.CutAll()
		if c.State() == Connected {
			var refused *refusedError // it waits here
			if e := c.drain(ctx); e != nil && !errors.Is(e, syscall.EHOSTDOWN) && ctx.Err() == nil && !errors.As(e, &refused) {
				err = errors.Join(err, e)
			}
		}
		if up := c.current(); up != nil {
			up.goodbye(ctx)
		}
		c.lists.mu.Lock() // nothing begins after this that is not waited for
		c.cancel()
		c.lists.mu.Unlock()
		if up := c.current(); up != nil {
			up.close()
		}
		c.wg.Wait()
		c.endErr = errors.Join(err, c.cache.Close())
	})
	return c.endErr
}

// Cache is the tree below, for tests and tools.
func (c *Client) Cache() *tree.Cache { return c.cache }
