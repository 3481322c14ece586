package cachefs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/tree"
)

// ReplicaOptions tune a Replica. Dir and Addr must be set.
type ReplicaOptions struct {
	// Dir is the directory; it is made if it does not exist. What is in it is
	// taken over where it is the master's, and put aside where it is not.
	Dir string
	// Addr is the master, as in Options.
	Addr string
	// Logger takes changes of state; nil is silence.
	Logger *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Dead and Retry are as in Options.
	Dead, Retry time.Duration
	// Inline is up to which size contents come with the records, in bytes; 0 is
	// 64 KiB.
	Inline int
	// Fetches is how many files are fetched at a time; 0 is 4.
	Fetches int
	// Choose says what of the fileset is kept; nil is all.
	Choose *tree.Choice
	// Owners, SameChoice and Whole are as in tree.ReplicaOptions.
	Owners            *tree.OwnerMap
	SameChoice, Whole bool
	// NoWatch leaves local edits to be found at the next start.
	NoWatch bool
	// RetainSize and RetainAge are how much of the log is kept, as in tree.Options.
	RetainSize int64
	RetainAge  time.Duration
	// Opened is called when the directory can be served, and Closing before it can
	// be served no longer: at the end, and when it has to be compared anew. nil:
	// nothing is.
	Opened  func(*tree.Tree) error
	Closing func()

	dial dialer // nil: p9srv/client
}

func (o *ReplicaOptions) fill() error {
	if o.Dir == "" || o.Addr == "" {
		return errors.New("a replica needs a folder and the address of its master")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Dead <= 0 {
		o.Dead = 6 * time.Second
	}
	if o.Retry <= 0 {
		o.Retry = 5 * time.Second
	}
	if o.Inline <= 0 {
		o.Inline = 64 << 10
	}
	if o.Fetches <= 0 {
		o.Fetches = 4
	}
	if o.Opened == nil {
		o.Opened = func(*tree.Tree) error { return nil }
	}
	if o.Closing == nil {
		o.Closing = func() {}
	}
	if o.dial == nil {
		o.dial = dial9P
	}
	return nil
}

// Replica keeps a directory the equal of a master's fileset: first by a snapshot,
// then by the feed, with small contents in both and large ones fetched by oid.
// Its methods may be called at the same time, but Run once.
type Replica struct {
	o     ReplicaOptions
	link  Options // what dialing and the feed want to know
	log   *slog.Logger
	want  wants
	above above

	ctx    context.Context // ends with Run
	cancel context.CancelFunc

	use sync.RWMutex // held for reading by who brings something into tree

	mu      sync.Mutex // guards what follows
	tree    *tree.Replica
	open    bool // tree is followed and may be served
	up      *upstream
	state   State
	copying bool
	why     error // why there is no link, or what stands in the way
	changed chan struct{}
	end     kml.Position // of the master's log, as last heard
	lost    time.Time

	progress struct {
		entries, files, bytes atomic.Int64 // of the copy; files and bytes with those fetched
	}
}

// OpenReplica opens the directory, or makes it a replica, which takes the master.
// A replica that was there before needs no master to be opened.
func OpenReplica(ctx context.Context, o ReplicaOptions) (*Replica, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	o.Dir = dir
	r := &Replica{o: o, log: o.Logger, state: Disconnected, changed: make(chan struct{})}
	r.want.init()
	r.link = Options{Dir: dir, Addr: o.Addr, Logger: o.Logger, Now: o.Now, Dead: o.Dead, dial: o.dial}
	if err := r.link.fill(); err != nil {
		return nil, err
	}
	// The replica lives until Run ends.
	r.ctx, r.cancel = context.WithCancel(context.Background())
	fileset := ""
	if _, err := os.Stat(filepath.Join(dir, tree.ExtDirName, "fileset.json")); err != nil {
		if fileset, err = r.ask(ctx); err != nil {
			return nil, err
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if err := r.openTree(fileset); err != nil {
		return nil, err
	}
	return r, nil
}

// ask is which fileset the master serves.
func (r *Replica) ask(ctx context.Context) (fileset string, err error) {
	up, err := r.connect(ctx)
	if err != nil {
		return "", err
	}
	defer up.close()
	g, err := up.greeting(ctx)
	if err != nil {
		return "", explain(r.o.Addr, err)
	}
	return g.Fileset, nil
}

// greeting is the master's, of a feed that is not followed.
func (u *upstream) greeting(ctx context.Context) (*feed.Greeting, error) {
	f, err := u.open(ctx, u.streams, unix.O_RDWR, "feed")
	if err != nil {
		return nil, err
	}
	s := &stream{f: f}
	defer s.close()
	m, err := s.next(ctx)
	if err != nil {
		return nil, err
	}
	g, ok := m.(*feed.Greeting)
	if !ok {
		return nil, unexpected(m, "a greeting")
	}
	return g, nil
}

// connect dials; it opens nothing.
func (r *Replica) connect(ctx context.Context) (*upstream, error) { return r.connectAs(ctx, &r.link) }

// connectAs is connect with other options.
func (r *Replica) connectAs(ctx context.Context, o *Options) (_ *upstream, err error) {
	up := &upstream{o: o, pace: newPacer(func() int { return 0 })}
	up.ctx, up.cancel = context.WithCancel(r.ctx)
	defer func() {
		if err != nil {
			up.close()
			err = explain(r.o.Addr, err)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, 4*setupTime)
	defer cancel()
	if up.streams, err = r.o.dial(ctx, o, nil); err != nil {
		return nil, err
	}
	if up.calls, err = r.o.dial(ctx, o, nil); err != nil {
		return nil, err
	}
	return up, nil
}

func (r *Replica) openTree(fileset string) error {
	t, err := tree.OpenReplica(r.o.Dir, tree.ReplicaOptions{
		Options: tree.Options{Now: r.o.Now, Logger: r.log, NoWatch: r.o.NoWatch, RetainSize: r.o.RetainSize, RetainAge: r.o.RetainAge},
		Fileset: fileset, Upstream: r.o.Addr, Lack: r.want.add, Choose: r.o.Choose, Owners: r.o.Owners, SameChoice: r.o.SameChoice, Whole: r.o.Whole,
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.tree, r.copying = t, t.Copying()
	r.mu.Unlock()
	if !t.Copying() {
		return r.opened()
	}
	return nil
}

// opened says that the directory can be served.
func (r *Replica) opened() error {
	if err := r.o.Opened(r.tree.Tree()); err != nil {
		return err
	}
	r.mu.Lock()
	r.open, r.copying = true, false
	r.mu.Unlock()
	return nil
}

// closeTree gives the directory up.
func (r *Replica) closeTree() error {
	r.use.Lock()
	defer r.use.Unlock()
	r.mu.Lock()
	open, t := r.open, r.tree
	r.open, r.tree = false, nil
	r.mu.Unlock()
	if open {
		r.o.Closing()
	}
	if t == nil {
		return nil
	}
	return t.Close()
}

// Errors that end Run, or stand in its way.
var (
	errStartOver  = errors.New("the directory has to be compared with the master's")
	errHistoryCut = errors.New("the master's history was cut")
)

// Run follows the master until ctx ends, whatever becomes of the link. With once
// it ends when the directory is the equal of what the master has; when it cannot
// become that by itself the error is a *NotEqual, and when ctx ends before it is
// ctx's. It closes the replica.
func (r *Replica) Run(ctx context.Context, once bool) (err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	context.AfterFunc(ctx, r.cancel)
	var wg sync.WaitGroup
	var equal error
	defer func() {
		stop()
		r.cancel()
		r.cutAbove()
		wg.Wait()
		if err == nil {
			err = equal
		}
		err = errors.Join(err, r.closeTree())
	}()
	for range r.o.Fetches {
		wg.Go(func() { r.fetchLoop(ctx) })
	}
	if once {
		wg.Go(func() {
			if equal = r.WaitEqual(ctx); equal == nil || errors.As(equal, new(*NotEqual)) {
				stop()
			}
		})
	}
	pause := time.Duration(0)
	for ctx.Err() == nil {
		if !wait(ctx, pause) {
			break
		}
		up, err := r.connect(ctx)
		if err == nil {
			pause = 0
			err = r.session(ctx, up)
			up.close()
		}
		if ctx.Err() != nil {
			break
		}
		r.disconnected(err)
		if errors.Is(err, errStartOver) {
			if err := errors.Join(r.tree.StartOver(errors.Is(err, errHistoryCut)), r.closeTree()); err != nil {
				return err
			}
			if err := r.openTree(""); err != nil {
				return err
			}
			continue
		}
		if errors.Is(err, tree.ErrOtherFileset) || once && pause > 0 && permanent(err) {
			return err
		}
		pause = min(max(2*pause, 50*time.Millisecond), r.o.Retry)
	}
	return nil
}

// wait waits about d; false when ctx ended.
func wait(ctx context.Context, d time.Duration) bool {
	if d == 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (r *Replica) disconnected(err error) {
	r.mu.Lock()
	if r.state != Disconnected {
		r.log.Warn("link to the master lost", "addr", r.o.Addr, "err", err)
		r.lost = r.o.Now()
	}
	r.state, r.up, r.why = Disconnected, nil, err
	r.signal()
	r.mu.Unlock()
	r.cutAbove()
}

// signal wakes who waits for a change. The caller holds mu.
func (r *Replica) signal() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// session is one link: copy when that is due, then follow.
func (r *Replica) session(ctx context.Context, up *upstream) error {
	step, cancel := context.WithTimeout(up.ctx, setupTime)
	g, err := up.greeting(step)
	cancel()
	if err != nil {
		return explain(r.o.Addr, err)
	}
	if fs := r.tree.State().Fileset(); fs.UUID != g.Fileset {
		return fmt.Errorf("%s: %w: it follows %s, and %s is served at %s", r.o.Dir, tree.ErrOtherFileset, fs.UUID, g.Fileset, r.o.Addr)
	}
	if r.tree.Copying() {
		if err := r.copy(ctx, up); err != nil {
			return err
		}
		if err := r.opened(); err != nil {
			return err
		}
	}
	at, crc := r.tree.Cursor()
	err = up.follow(ctx, feed.Request{From: at, CRC: crc, Inline: r.o.Inline})
	var f *feed.Failure
	switch {
	case errors.As(err, &f) && (f.Code == feed.CodeHistoryCut || f.Code == feed.CodeTruncated):
		r.log.Warn("the directory is compared with the master anew", "addr", r.o.Addr, "err", err)
		if f.Code == feed.CodeHistoryCut {
			err = fmt.Errorf("%w: %w", errHistoryCut, err)
		}
		return fmt.Errorf("%w: %w", errStartOver, err)
	case err != nil:
		return explain(r.o.Addr, err)
	}
	defer up.feed.close()
	if r.tree.State().Fileset().Upstream != r.o.Addr {
		if err := r.tree.State().Update(func(f *tree.Fileset) { f.Upstream = r.o.Addr }); err != nil {
			return err
		}
	}
	r.mu.Lock()
	r.state, r.up, r.why, r.end = CatchingUp, up, nil, up.greet.End
	r.signal()
	r.mu.Unlock()
	up.offers = newOffers(up, r.log, r.hold)
	var wg sync.WaitGroup
	wg.Go(up.offers.run)
	defer wg.Wait()
	defer up.close()
	r.log.Info("follows the master", "addr", r.o.Addr, "position", at.String())
	r.caughtUp(up)
	r.want.wake()
	return r.follow(ctx, up)
}
