package cachefs

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// VerifyOptions say what Verify compares. Master and Replica must be set.
type VerifyOptions struct {
	// Master is the address of a master, and Replica that at which one of its
	// replicas is served.
	Master, Replica string
	// Repair has the replica mended where it differs.
	Repair bool
	// Stopped: the replica follows nobody now, and does not get newer.
	Stopped bool
	// Settle is how long a name that goes on changing is looked at again, and how
	// long after an order to mend it is waited without anything being mended; 0 is
	// 10 s.
	Settle time.Duration
	// Found is called with each difference, when it is certain, or was mended.
	Found func(Difference)
	// Progress is told of each side how many names and bytes it has read. It is
	// called from two goroutines; nil is nobody.
	Progress func(replica bool, names, bytes int64)

	dial dialer // nil: p9srv/client
}

// Difference is a name at which a replica is not what its master is.
type Difference struct {
	Path  string   `json:"path"` // from the root of the fileset
	OID   kml.OID  `json:"oid"`  // the master's; 0:0 when it has none
	Kinds []string `json:"kinds"`
	// Changing: it changed while it was looked at, or is on its way to the
	// replica; nothing more can be said.
	Changing bool `json:"changing,omitempty"`
	Mended   bool `json:"mended,omitempty"`
	// Why it could not be mended.
	Why string `json:"why,omitempty"`
}

// The kinds of differences.
const (
	DiffMissing = "missing" // with all that is below, when it is a folder
	DiffExtra   = "extra"
	DiffType    = "type"
	DiffData    = "data" // of a file
	DiffMode    = "mode"
	DiffOwner   = "owner"
	DiffTime    = "mtime"
	DiffXattr   = "xattr"
	DiffLinks   = "links" // how many names are the same file
	DiffTarget  = "target"
	DiffDevice  = "device"
)

// VerifyResult sums up a comparison.
type VerifyResult struct {
	Names       int64 `json:"names"` // that the master has
	Bytes       int64 `json:"bytes"` // that were read at the replica
	Compared    int64 `json:"compared"`
	Differences int64 `json:"differences"` // those mended among them
	Mended      int64 `json:"mended"`
	Changing    int64 `json:"changing"`
}

// verifier compares two trees.
type verifier struct {
	o            VerifyOptions
	master, here *asker
	res          VerifyResult
}

// Verify compares a replica with its master by content. Neither is held still:
// each reads its tree and hashes it from the leaves to the root, and where the
// hashes differ both are asked again until the difference is certain or gone.
func Verify(ctx context.Context, o VerifyOptions) (VerifyResult, error) {
	if o.Settle <= 0 {
		o.Settle = 10 * time.Second
	}
	if o.Progress == nil {
		o.Progress = func(bool, int64, int64) {}
	}
	v := &verifier{o: o}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, side := range []struct {
		addr string
		to   **asker
	}{{o.Master, &v.master}, {o.Replica, &v.here}} {
		link := Options{Dir: "-", Addr: side.addr, Dead: 30 * time.Second, dial: o.dial}
		err := link.fill()
		if err == nil {
			*side.to, err = newAsker(ctx, &link)
		}
		if err != nil {
			return v.res, err
		}
		defer (*side.to).close()
	}
	return v.res, v.run(ctx)
}

func (v *verifier) run(ctx context.Context) error {
	choice, err := v.here.choice(ctx)
	if err != nil {
		return fmt.Errorf("replica: %w", err)
	}
	var there, here *tree.DigestEntry
	var mu sync.Mutex
	g, both := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		there, err = v.master.tree(both, choice, func(names, bytes int64) {
			mu.Lock()
			defer mu.Unlock()
			v.res.Names = names
			v.o.Progress(false, names, bytes)
		})
		if err != nil {
			err = fmt.Errorf("master: %w", err)
		}
		return err
	})
	g.Go(func() (err error) {
		here, err = v.here.tree(both, choice, func(names, bytes int64) {
			mu.Lock()
			defer mu.Unlock()
			v.res.Bytes = bytes
			v.o.Progress(true, names, bytes)
		})
		if err != nil {
			err = fmt.Errorf("replica: %w", err)
		}
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	v.res.Compared++
	if there.Sum() == here.Sum() {
		return nil
	}
	if len(kindsOf(there, here, false)) > 0 {
		if err := v.settle(ctx, ".", 0, ""); err != nil {
			return err
		}
	}
	return v.folder(ctx, "", kml.RootOID, there, here)
}

// pair is a name at which the two differ.
type pair struct {
	name        string
	there, here *tree.DigestEntry
}

// folder compares the entries of a folder of which the two differ.
func (v *verifier) folder(ctx context.Context, path string, oid kml.OID, there, here *tree.DigestEntry) error {
	if there.Content == here.Content && !there.Busy && !here.Busy || there.Ref == 0 || here.Ref == 0 {
		return nil
	}
	differ, err := v.merge(ctx, there.Ref, here.Ref)
	if err != nil {
		return err
	}
	for _, p := range differ {
		at := p.name
		if path != "" {
			at = path + "/" + p.name
		}
		if p.there == nil || p.here == nil || len(kindsOf(p.there, p.here, true)) > 0 || p.there.Busy || p.here.Busy {
			if err := v.settle(ctx, at, oid, p.name); err != nil {
				return err
			}
		}
		if p.there != nil && p.here != nil && p.there.IsDir() && p.here.IsDir() {
			if err := v.folder(ctx, at, p.there.OID, p.there, p.here); err != nil {
				return err
			}
		}
	}
	return nil
}

// merge goes along the two lists of a folder and gives what differs.
func (v *verifier) merge(ctx context.Context, there, here int64) (out []pair, err error) {
	a, err := v.master.list(ctx, there)
	if err != nil {
		return nil, err
	}
	b, err := v.here.list(ctx, here)
	if err != nil {
		return nil, err
	}
	x, err := a.next(ctx)
	if err != nil {
		return nil, err
	}
	y, err := b.next(ctx)
	if err != nil {
		return nil, err
	}
	for x != nil || y != nil {
		v.res.Compared++
		p := pair{there: x, here: y}
		if x == nil || y != nil && y.Name < x.Name {
			p = pair{here: y}
		} else if y == nil || x.Name < y.Name {
			p = pair{there: x}
		}
		switch {
		case p.there == nil:
			p.name = p.here.Name
		default:
			p.name = p.there.Name
		}
		if p.there == nil || p.here == nil || x.Sum() != y.Sum() || x.Busy {
			out = append(out, p)
		}
		if p.there != nil {
			if x, err = a.next(ctx); err != nil {
				return nil, err
			}
		}
		if p.here != nil {
			if y, err = b.next(ctx); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// kindsOf says in what two entries differ; what is in a folder is left to its
// entries.
func kindsOf(x, y *tree.DigestEntry, data bool) (kinds []string) {
	add := func(differs bool, kind string) {
		if differs {
			kinds = append(kinds, kind)
		}
	}
	switch {
	case x == nil && y == nil:
		return nil
	case y == nil:
		return []string{DiffMissing}
	case x == nil:
		return []string{DiffExtra}
	case x.Mode&unix.S_IFMT != y.Mode&unix.S_IFMT:
		return []string{DiffType}
	}
	add(data && !x.IsDir() && (x.Size != y.Size || x.Content != y.Content), DiffData)
	add(x.Target != y.Target, DiffTarget)
	add(x.Rdev != y.Rdev, DiffDevice)
	add(x.Mode != y.Mode, DiffMode)
	add(x.UID != y.UID || x.GID != y.GID, DiffOwner)
	add(x.Xattrs != y.Xattrs, DiffXattr)
	add(x.Nlink != y.Nlink, DiffLinks)
	add(x.Mtime != y.Mtime, DiffTime)
	return kinds
}

// Pauses between two looks at a name, and how long contents may be on their way
// that mend one.
const (
	lookFirst = 5 * time.Millisecond
	lookLast  = 500 * time.Millisecond
	mendLast  = 10 * time.Minute
)

// late reports whether a replica could not know yet what its master has; or the
// master was looked at before the replica's version came to be.
func late(x, y seen) bool {
	if y.at < x.at {
		return true
	}
	if x.e == nil {
		return y.e != nil && y.e.Version > x.at
	}
	return x.e.Version > y.at || x.e.DataVersion > y.at || y.e != nil && (y.e.Version > x.e.Version || y.e.DataVersion > x.e.DataVersion)
}

// settle looks at a name on both sides until it is the same, or differs although
// the replica has all that the master had when that was looked at.
func (v *verifier) settle(ctx context.Context, path string, parent kml.OID, name string) error {
	d := Difference{Path: path}
	var mending time.Time // since when
	began := time.Now()
	for pause := lookFirst; ; pause = min(2*pause, lookLast) {
		x, err := v.master.look(ctx, parent, name)
		if err != nil {
			return fmt.Errorf("master: %q: %w", path, err)
		}
		y, err := v.here.look(ctx, parent, name)
		if err != nil {
			return fmt.Errorf("replica: %q: %w", path, err)
		}
		kinds := kindsOf(x.e, y.e, true)
		if x.e != nil {
			d.OID = x.e.OID
		}
		busy := x.e != nil && x.e.Busy || y.e != nil && y.e.Busy
		if len(kinds) == 0 && !busy {
			d.Mended = !mending.IsZero()
			break
		}
		behind := busy || !v.o.Stopped && late(x, y)
		switch {
		case !mending.IsZero() && time.Since(mending) > v.o.Settle && (!busy || time.Since(mending) > mendLast):
			d.Why = "it is not mended yet: mezzo status tells of its troubles"
			return v.found(d)
		case !mending.IsZero():
		case behind && time.Since(began) > v.o.Settle:
			d.Changing, d.Kinds = true, kinds
			return v.found(d)
		case !behind && (pause > lookFirst || v.o.Settle < lookLast):
			d.Kinds = kinds
			if !v.o.Repair {
				return v.found(d)
			}
			mending = time.Now()
			if err := v.mend(ctx, parent, name, kinds); err != nil {
				d.Why = err.Error()
				return v.found(d)
			}
			pause = lookFirst
		}
		if !wait(ctx, pause) {
			return ctx.Err()
		}
	}
	if d.Mended {
		return v.found(d)
	}
	return nil
}

func (v *verifier) found(d Difference) error {
	switch {
	case d.Changing:
		v.res.Changing++
	case d.Mended:
		v.res.Mended++
		v.res.Differences++
	default:
		v.res.Differences++
	}
	if v.o.Found != nil {
		v.o.Found(d)
	}
	return nil
}

// mend has the replica put a name right.
func (v *verifier) mend(ctx context.Context, parent kml.OID, name string, kinds []string) error {
	what := "attr"
	if slices.Contains(kinds, DiffData) {
		what = "data"
	}
	return v.here.control(ctx, strings.Join([]string{"mend", what, parent.String(), strconv.Quote(name)}, " "))
}
