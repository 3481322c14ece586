package cachefs

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// Status is what a person wants to know of a client.
type Status struct {
	Addr      string
	Dir       string
	Fileset   string
	Site      kml.SiteID
	State     State
	Position  kml.Position // applied here
	End       kml.Position // of the master's log, as last heard
	Durable   kml.Position // at the master, as last heard
	Heard     time.Time    // from the master; zero: never
	Why       string       // why there is no link
	Bandwidth int64        // bytes a second each way at most; 0: no limit
	Aging     time.Duration
	OpenDirty int    // files written since their last store
	Unsent    int    // changes the master has not decided on
	Outbox    int    // changes kept until they are durable there
	Waiting   []Note // changes that the master refuses, and that are tried again
	Notes     []Note // changes that were refused
}

// Status may be called at any time.
func (c *Client) Status() Status {
	fs := c.cache.State().Fileset()
	at, _ := c.cache.Cursor()
	s := Status{Addr: c.o.Addr, Dir: c.cache.Dir(), Fileset: fs.UUID, Site: fs.Site, Position: at, OpenDirty: c.cache.OpenDirty()}
	for _, e := range c.cache.Local().Entries() {
		s.Outbox++
		if e.Back() == 0 {
			s.Unsent++
		}
	}
	s.Waiting = c.waiting()
	s.Bandwidth = c.out.get()
	c.push.mu.Lock()
	s.Aging = c.push.aging
	c.push.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	s.State, s.End, s.Durable, s.Heard = c.state, c.end, c.durable, c.heard
	if c.why != nil {
		s.Why = c.why.Error()
	}
	s.Notes = append(s.Notes, c.notes...)
	return s
}

// String is the status as "key: value" lines.
func (s Status) String() string {
	var b strings.Builder
	line := func(key string, value any) { fmt.Fprintf(&b, "%s: %v\n", key, value) }
	line("fileset", s.Fileset)
	line("role", tree.RoleCache)
	line("master", s.Addr)
	line("state", s.State)
	line("dir", strconv.Quote(s.Dir))
	line("site", s.Site)
	line("position", s.Position)
	line("end", s.End)
	line("durable", s.Durable)
	if !s.Heard.IsZero() {
		line("heard", s.Heard.UTC().Format(time.RFC3339))
	}
	line("open_dirty", s.OpenDirty)
	line("unsent", s.Unsent)
	line("outbox", s.Outbox)
	if s.Bandwidth > 0 {
		line("bwlimit", s.Bandwidth)
	}
	if s.Aging > 0 {
		line("aging", s.Aging)
	}
	if s.Why != "" {
		line("why", strings.ReplaceAll(s.Why, "\n", " "))
	}
	for _, n := range s.Waiting {
		line("waiting", n)
	}
	for _, n := range s.Notes {
		line("refused", n)
	}
	return b.String()
}

// localText is the changes that wait, a line each.
func (c *Client) localText() []byte {
	var b []byte
	for _, e := range c.cache.Local().Entries() {
		if e.Back() != 0 {
			continue
		}
		b = kml.AppendText(b, e.Rec())
		if len(b) > 0 && b[len(b)-1] != '\n' {
			b = append(b, '\n')
		}
	}
	return b
}

// Ext is the folder .mezzo of a client: its own status, local and conflicts;
// kml, log and clients are the master's.
func (c *Client) Ext() tree.Ext { return ext{c} }

type ext struct{ c *Client }

// Numbers of the entries. They never change.
const (
	idKML       = 1
	idLog       = 2
	idStatus    = 8
	idClients   = 9
	idConflicts = 11
	idPolicy    = 12
	idLocal     = 14
	idCtl       = 15
	idPins      = 16
	idMade      = 17
)

func (x ext) nodes() []tree.ExtNode {
	const file = unix.S_IFREG | 0o444
	text := func(name string, id uint64, f func() []byte) tree.ExtNode {
		return tree.ExtNode{Name: name, ID: id, Mode: file, Text: true,
			Size: func(context.Context) (uint64, error) { return uint64(len(f())), nil },
			Open: func(_ context.Context, cred *tree.Cred, flags int) (tree.ExtHandle, error) {
				if err := x.c.mayRead(name, cred, flags); err != nil {
					return nil, err
				}
				return &textHandle{f()}, nil
			}}
	}
	far := func(name string, id uint64, isText bool) tree.ExtNode {
		return tree.ExtNode{Name: name, ID: id, Mode: file, Text: isText,
			Size: func(ctx context.Context) (uint64, error) { return x.c.farSize(ctx, name) },
			Open: func(ctx context.Context, cred *tree.Cred, flags int) (tree.ExtHandle, error) {
				if err := x.c.mayRead(name, cred, flags); err != nil {
					return nil, err
				}
				return x.c.farOpen(ctx, name, unix.O_RDONLY)
			}}
	}
	return []tree.ExtNode{
		text("status", idStatus, func() []byte { return []byte(x.c.Status().String()) }),
		text("local", idLocal, x.c.localText),
		text("conflicts", idConflicts, x.c.conflictsText),
		text("made", idMade, x.c.madeText),
		text("pins", idPins, x.c.pinsText),
		x.ctlNode(),
		far("kml", idKML, false), far("log", idLog, false), far("clients", idClients, true), x.policy(),
	}
}

// policy is the master's policy, which may be changed from here.
func (x ext) policy() tree.ExtNode {
	return tree.ExtNode{Name: "policy", ID: idPolicy, Mode: unix.S_IFREG | 0o644, Text: true,
		Size: func(ctx context.Context) (uint64, error) { return x.c.farSize(ctx, "policy") },
		Open: func(ctx context.Context, cred *tree.Cred, flags int) (tree.ExtHandle, error) {
			// Who may change it there is whoever runs this client.
			if err := x.c.mayRead("policy", cred, unix.O_RDONLY); err != nil {
				return nil, err
			}
			return x.c.farOpen(ctx, "policy", flags&(unix.O_ACCMODE|unix.O_TRUNC))
		}}
}

// Lookup is tree.Ext's.
func (x ext) Lookup(_ context.Context, _ *tree.Cred, name string) (tree.ExtNode, error) {
	for _, n := range x.nodes() {
		if n.Name == name {
			return n, nil
		}
	}
	return tree.ExtNode{}, syscall.ENOENT
}

// List is tree.Ext's.
func (x ext) List(context.Context, *tree.Cred) ([]tree.ExtNode, error) { return x.nodes(), nil }

// mayRead lets everybody read status, and the rest only who runs the client: it
// shows names regardless of modes.
func (c *Client) mayRead(name string, cred *tree.Cred, flags int) error {
	if flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_TRUNC != 0 {
		return syscall.EACCES
	}
	if name != "status" && cred != nil && cred.UID != 0 && int(cred.UID) != os.Geteuid() {
		return syscall.EACCES
	}
	return nil
}

// textHandle is a text made at the open.
type textHandle struct{ text []byte }

// ReadAt is tree.ExtHandle's.
func (h *textHandle) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(h.text)) {
		return 0, nil
	}
	return copy(p, h.text[off:]), nil
}

// WriteAt is tree.ExtHandle's.
func (h *textHandle) WriteAt(context.Context, []byte, int64) (int, error) { return 0, syscall.EBADF }

// Attr is tree.ExtHandle's.
func (h *textHandle) Attr() (tree.Attr, bool) { return tree.Attr{}, false }

// Close is tree.ExtHandle's.
func (h *textHandle) Close() error { return nil }

// farHandle is a file of the master's journal extension.
type farHandle struct {
	up *upstream
	f  linkFile
}

func (c *Client) farOpen(ctx context.Context, name string, flags int) (*farHandle, error) {
	up, err := c.online(ctx)
	if err != nil {
		return nil, err
	}
	bound, stop := up.bind(ctx)
	defer stop()
	bound, cancel := context.WithTimeout(bound, callTime)
	defer cancel()
	f, err := up.calls.Open(bound, flags, name)
	if err != nil {
		return nil, up.down(ctx, err)
	}
	return &farHandle{up, f}, nil
}

func (c *Client) farSize(ctx context.Context, name string) (uint64, error) {
	h, err := c.farOpen(ctx, name, unix.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer h.Close()
	bound, stop := h.up.bind(ctx)
	defer stop()
	size, _, err := h.f.Stat(bound)
	return size, h.up.down(ctx, err)
}

// ReadAt is tree.ExtHandle's.
func (h *farHandle) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	bound, stop := h.up.bind(ctx)
	defer stop()
	bound, cancel := context.WithTimeout(bound, callTime)
	defer cancel()
	n, err := h.f.ReadAt(bound, p, off)
	return n, h.up.down(ctx, err)
}

// WriteAt is tree.ExtHandle's. The master refuses it where the file is not for
// writing.
func (h *farHandle) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	bound, stop := h.up.bind(ctx)
	defer stop()
	bound, cancel := context.WithTimeout(bound, callTime)
	defer cancel()
	n, err := h.f.WriteAt(bound, p, off)
	return n, h.up.down(ctx, err)
}

// Attr is tree.ExtHandle's.
func (h *farHandle) Attr() (tree.Attr, bool) { return tree.Attr{}, false }

// Close is tree.ExtHandle's.
func (h *farHandle) Close() error { return h.f.Close() }
