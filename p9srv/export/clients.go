package export

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mezzofs/mezzo/kml"
)

// mode is what a client does.
type mode uint8

const (
	modeFollow mode = 1 << iota // it has the feed open
	modeWrite                   // it has a session of reint
)

func (m mode) String() string {
	switch m {
	case modeFollow:
		return "follow"
	case modeWrite:
		return "write"
	case modeFollow | modeWrite:
		return "follow,write"
	}
	return "gone"
}

// client is one who uses the feed or reint: all files that one attach has open
// are one client.
type client struct {
	id Identity

	mu   sync.Mutex
	mode [2]int // how many handles of each mode are open
	site kml.SiteID
	host string
	pos  kml.Position // all before it has arrived
	last time.Time
}

// at notes how far the client has come.
func (c *client) at(p kml.Position) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pos = p
}

// seen notes that the client lives.
func (c *client) seen(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = now
}

// is notes which installation the client is.
func (c *client) is(site kml.SiteID, host string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.site, c.host = site, host
}

func (c *client) state() mode {
	var m mode
	if c.mode[0] > 0 {
		m |= modeFollow
	}
	if c.mode[1] > 0 {
		m |= modeWrite
	}
	return m
}

// clients is who there is, and the last of those who were.
type clients struct {
	mu   sync.Mutex
	list []*client
}

// goneClients is how many clients that went are remembered.
const goneClients = 256

// open counts one more handle of the client that id names.
func (cs *clients) open(id Identity, m mode, now time.Time) *client {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	i := slices.IndexFunc(cs.list, func(c *client) bool { return c.id == id })
	if i < 0 {
		cs.list = append(cs.list, &client{id: id})
		i = len(cs.list) - 1
	}
	c := cs.list[i]
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mode[m>>1]++
	c.last = now
	return c
}

// close counts one handle less.
func (cs *clients) close(c *client, m mode, now time.Time) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c.mu.Lock()
	c.mode[m>>1]--
	c.last = now
	c.mu.Unlock()
	gone := 0
	for i := len(cs.list) - 1; i >= 0; i-- {
		k := cs.list[i]
		k.mu.Lock()
		away, known := k.state() == 0, k.site != 0
		k.mu.Unlock()
		if away {
			gone++
			if gone > goneClients || !known {
				cs.list = slices.Delete(cs.list, i, i+1)
			}
		}
	}
}

// connected is how many there are.
func (cs *clients) connected() int {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	n := 0
	for _, c := range cs.list {
		c.mu.Lock()
		if c.state() != 0 {
			n++
		}
		c.mu.Unlock()
	}
	return n
}

// clientLine is one line of clients.
type clientLine struct {
	site kml.SiteID
	text string
}

// clientLines is the clients file: site, address, user, mode, position, how many
// records that is behind, when last seen, host.
func (j *Journal) clientLines() []byte {
	end := j.t.Log().End()
	j.clients.mu.Lock()
	lines := make([]clientLine, 0, len(j.clients.list))
	for _, c := range j.clients.list {
		c.mu.Lock()
		lag := "-"
		if c.mode[0] > 0 {
			lag = strconv.FormatUint(end.Recno()-min(end.Recno(), c.pos.Recno()), 10)
		}
		lines = append(lines, clientLine{c.site, fmt.Sprintf("%d %s %d %s %s %s %s %s\n", c.site, word(c.id.Peer), c.id.UID,
			c.state(), c.pos, lag, c.last.UTC().Format(time.RFC3339), word(c.host))})
		c.mu.Unlock()
	}
	j.clients.mu.Unlock()
	slices.SortFunc(lines, func(a, b clientLine) int {
		return cmp.Or(cmp.Compare(a.site, b.site), cmp.Compare(a.text, b.text))
	})
	var b bytes.Buffer
	for _, l := range lines {
		b.WriteString(l.text)
	}
	return b.Bytes()
}

// word is s as one word: "-" for nothing, quoted when it is more than a word.
func word(s string) string {
	if s == "" {
		return "-"
	}
	if q := strconv.Quote(s); strings.ContainsAny(s, " \t") || len(q) != len(s)+2 {
		return q
	}
	return s
}
