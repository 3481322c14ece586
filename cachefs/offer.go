package cachefs

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/tree"
)

// offers sends files back that a crash of the master's machine damaged there, on
// one link: what the master wants is added, and sent where it is here.
type offers struct {
	up  *upstream
	log *slog.Logger
	// hold opens what is here of a file: that version or one that the master lost;
	// ErrNotExist when nothing is.
	hold func(oid kml.OID, v kml.Position) (*tree.Held, error)

	mu   sync.Mutex
	list []feed.Damaged
	kick chan struct{}
}

// offerAgain is after how long an offer is made again when somebody else was
// sending the same file.
const offerAgain = time.Second

func newOffers(up *upstream, log *slog.Logger, hold func(kml.OID, kml.Position) (*tree.Held, error)) *offers {
	return &offers{up: up, log: log, hold: hold, kick: make(chan struct{}, 1)}
}

// add notes that the master wants a file. It does not wait.
func (o *offers) add(d feed.Damaged) {
	o.mu.Lock()
	o.list = append(o.list, d)
	o.mu.Unlock()
	select {
	case o.kick <- struct{}{}:
	default:
	}
}

func (o *offers) take() (d feed.Damaged, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.list) == 0 {
		return d, false
	}
	d, o.list = o.list[0], o.list[1:]
	return d, true
}

// run sends until the link ends. The next link is told anew what is wanted.
func (o *offers) run() {
	for {
		select {
		case <-o.kick:
		case <-o.up.ctx.Done():
			return
		}
		var again []feed.Damaged
		for o.up.ctx.Err() == nil {
			d, ok := o.take()
			if !ok {
				break
			}
			err := o.send(d)
			switch {
			case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EDQUOT):
				again = append(again, d)
			case errors.Is(err, os.ErrNotExist):
			case err != nil && o.up.ctx.Err() == nil:
				o.log.Info("the master did not take back a file that it lost", "oid", d.OID, "err", err)
			}
		}
		if len(again) > 0 && !wait(o.up.ctx, offerAgain) {
			return
		}
		for _, d := range again {
			o.add(d)
		}
	}
}

// send sends one file, when it is here and the master still wants it.
func (o *offers) send(d feed.Damaged) (err error) {
	h, err := o.hold(d.OID, d.Version)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	sum := blake3.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{sum}, io.NewSectionReader(h, 0, h.Size), make([]byte, 256<<10)); err != nil {
		return err
	}
	m := feed.Mend{OID: h.OID, Version: h.Version, Mtime: h.Mtime}
	sum.Sum(m.Digest[:0])
	ctx := o.up.ctx
	f, err := o.up.calls.Create(ctx, unix.O_WRONLY|unix.O_EXCL, "mend", m.String())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := o.up.blocks(f, h, 0, h.Size); err != nil {
		return err
	}
	if err := f.Sync(ctx); err != nil {
		return err
	}
	o.log.Info("a file that the master lost was sent back", "oid", h.OID, "version", h.Version.String(), "bytes", h.Size)
	return nil
}
