package cachefs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mezzofs/mezzo/kml"
)

// noise is n bytes that nothing compresses and no block of which is zero.
func noise(n int) []byte {
	b := make([]byte, 0, n+8)
	for v := uint64(1); len(b) < n; v = v*6364136223846793005 + 1442695040888963407 {
		b = binary.LittleEndian.AppendUint64(b, v|1)
	}
	return b[:n]
}

// uploaded is how much of the only upload is in the master's stage.
func (m *testMaster) uploaded() int64 {
	es, _ := filepath.Glob(filepath.Join(m.dir, ".mezzo", "stage", "*-*"))
	size := int64(0)
	for _, p := range es {
		if st, err := os.Stat(p); err == nil {
			size = max(size, st.Size())
		}
	}
	return size
}

// until waits until f holds.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	same(t, "true", func() (string, error) { return fmt.Sprint(f()), nil })
}

// TestUploadGoesOn cuts a large upload in its middle, by the link, by the end of
// the client and by the end of the master: what has got there is not sent again,
// but for a few blocks.
func TestUploadGoesOn(t *testing.T) {
	const size = 8 << 20
	body := noise(size)
	for _, how := range []string{"link", "client", "master"} {
		t.Run(how, func(t *testing.T) {
			m := newMaster(t)
			p := newProxy(t, m.sock)
			ctx := ctxOf(t)
			dir := t.TempDir()
			c := openClient(t, dir, p.addr)
			p.slow(2 * time.Millisecond) // 4 KiB each
			must(t, writeBytes(ctx, c, "large", body))
			until(t, "half", func() bool { return m.uploaded() > size/3 })
			p.cut(true)
			must(t, c.WaitState(ctx, func(s State) bool { return s == Disconnected }))
			switch how {
			case "client":
				must(t, c.Close(ctx))
			case "master":
				m.stop()
				m.start()
			}
			there := m.uploaded()
			before := p.sent()
			p.slow(0)
			p.open()
			if how == "client" {
				c = openClient(t, dir, p.addr)
			}
			must(t, c.WaitState(ctx, func(s State) bool { return s == Connected }))
			must(t, c.Sync(ctx))
			if n, most := p.sent()-before, size-there+uploadAhead*uploadBlock+1<<20; n > most {
				t.Errorf("%d bytes were sent to complete %d of %d", n, there, size)
			}
			if b, err := os.ReadFile(filepath.Join(m.dir, "large")); !bytes.Equal(b, body) || err != nil {
				t.Error(len(b), err)
			}
			once(t, m)
			equal(t, m.tree, c)
		})
	}
}

// TestUploadDamaged: what is in the stage under a change's number is of something
// else, as after a crash of the master's machine. The record's digest tells, and
// it is sent anew.
func TestUploadDamaged(t *testing.T) {
	const size = 8 << 20
	m := newMaster(t)
	p := newProxy(t, m.sock)
	ctx := ctxOf(t)
	c := m.client(p.addr)
	body := noise(size)
	p.slow(2 * time.Millisecond)
	must(t, writeBytes(ctx, c, "large", body))
	until(t, "half", func() bool { return m.uploaded() > size/2 })
	p.cut(true)
	must(t, c.WaitState(ctx, func(s State) bool { return s == Disconnected }))
	es, err := filepath.Glob(filepath.Join(m.dir, ".mezzo", "stage", "*-*"))
	if err != nil || len(es) != 1 {
		t.Fatal(es, err)
	}
	f, err := os.OpenFile(es[0], os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt(make([]byte, 4096), 0)
	must(t, err)
	must(t, f.Close())
	p.slow(0)
	p.open()
	same(t, "true", func() (string, error) {
		b, err := os.ReadFile(filepath.Join(m.dir, "large"))
		return fmt.Sprint(bytes.Equal(b, body)), err
	})
	must(t, c.Sync(ctx))
	equal(t, m.tree, c)
}

// TestUploadOfWhatIsWritten: a file that is written all the time reaches the
// master in whole versions only.
func TestUploadOfWhatIsWritten(t *testing.T) {
	const size = 3 << 20
	m := newMaster(t)
	c, err := clientWith(t, func() Options {
		o := optionsOf(t.TempDir(), m.sock)
		o.StoreIdle, o.StoreBusy = 5*time.Millisecond, 20*time.Millisecond
		return o
	}())
	must(t, err)
	ctx := ctxOf(t)
	_, h, err := c.Create(ctx, nil, kml.RootOID, "busy", os.O_RDWR, 0o644)
	must(t, err)
	seen := map[byte]bool{}
	for n := 0; len(seen) < 8; n++ {
		fill := bytes.Repeat([]byte{byte(n%250 + 1)}, size)
		_, err = h.WriteAt(ctx, fill, 0)
		must(t, err)
		if n%3 == 0 {
			must(t, h.Flush(ctx))
		}
		b, err := os.ReadFile(filepath.Join(m.dir, "busy"))
		if errors.Is(err, os.ErrNotExist) || len(b) == 0 {
			continue
		}
		must(t, err)
		if len(b) != size || bytes.Count(b, b[:1]) != size {
			t.Fatalf("torn: %d bytes, %d of them %d", len(b), bytes.Count(b, b[:1]), b[0])
		}
		seen[b[0]] = true
	}
	must(t, h.Close())
	must(t, c.Sync(ctx))
	equal(t, m.tree, c)
}

// TestRefBehindItsPack: a change in another folder is not held up by a large
// upload for longer than overtake, and one in the same folder keeps its place.
func TestRefBehindItsPack(t *testing.T) {
	m := newMaster(t)
	p := newProxy(t, m.sock)
	ctx := ctxOf(t)
	c := m.client(p.addr)
	repo, err := c.Mkdir(ctx, nil, kml.RootOID, "repo", 0o755)
	must(t, err)
	mail, err := c.Mkdir(ctx, nil, kml.RootOID, "mail", 0o755)
	must(t, err)
	must(t, c.Sync(ctx))
	must(t, c.SetOffline(true))
	in := func(dir kml.OID, name string, b []byte) {
		t.Helper()
		_, h, err := c.Create(ctx, nil, dir, name, os.O_WRONLY, 0o644)
		must(t, err)
		_, err = h.WriteAt(ctx, b, 0)
		must(t, err)
		must(t, h.Close())
	}
	in(repo.OID, "pack", noise(4<<20))
	in(repo.OID, "ref", []byte("of what is in the pack"))
	in(mail.OID, "letter", []byte("dear"))
	p.slow(20 * time.Millisecond) // the pack takes 20 s
	// As if it had been on its way for that long.
	c.push.mu.Lock()
	for _, e := range c.cache.Local().Entries() {
		if e.Rec().Attr.Size > inlineMax {
			c.push.of(e).began = time.Now().Add(-overtake)
		}
	}
	c.push.mu.Unlock()
	must(t, c.SetOffline(false))
	until(t, "letter", func() bool {
		b, err := os.ReadFile(filepath.Join(m.dir, "mail", "letter"))
		return err == nil && string(b) == "dear"
	})
	if m.uploaded() >= 4<<20 {
		t.Error("the pack was there before: nothing was tested")
	}
	if b, err := os.ReadFile(filepath.Join(m.dir, "repo", "ref")); err == nil && len(b) > 0 {
		t.Error("the ref is there before its pack")
	}
	p.slow(0)
	must(t, c.WaitState(ctx, func(s State) bool { return s == Connected }))
	must(t, c.Sync(ctx))
	var pack, ref kml.Position
	r, err := m.tree.Log().ReaderAfter(0)
	must(t, err)
	defer r.Close()
	for {
		rec, err := r.TryNext()
		if err != nil {
			break
		}
		switch {
		case rec.Op == kml.OpStore && rec.Attr.Size == 4<<20:
			pack = rec.Pos
		case rec.Op == kml.OpStore && rec.Attr.Size == uint64(len("of what is in the pack")):
			ref = rec.Pos
		}
	}
	if pack == 0 || ref < pack {
		t.Error("pack at", pack, "ref at", ref)
	}
	equal(t, m.tree, c)
}

// TestPacer: the window follows how fast answers come, small contents go before
// large ones, and no more is on its way than the window.
func TestPacer(t *testing.T) {
	most := 0
	p := newPacer(func() int { return most })
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for range 100 {
		n, err := p.acquire(ctx, 1<<30, false)
		must(t, err)
		p.release(n, time.Millisecond)
	}
	if w := p.Window(); w != paceMost {
		t.Error("fast link: window", w)
	}
	for range 30 {
		n, err := p.acquire(ctx, 1<<30, false)
		must(t, err)
		p.release(n, paceSlow+1)
		p.mu.Lock()
		p.shrunk = time.Time{} // the next window
		p.mu.Unlock()
	}
	if w := p.Window(); w != paceLeast {
		t.Error("slow link: window", w)
	}
	p.mu.Lock()
	p.window = 64 << 10
	p.mu.Unlock()
	if most = 8 << 10; p.Window() != most {
		t.Error("window", p.Window(), "with a limit of", most)
	}
	most = 0
	// Full: whoever is urgent is next.
	var held []int
	for used := 0; used < 64<<10; {
		n, err := p.acquire(ctx, 1<<30, false)
		must(t, err)
		held, used = append(held, n), used+n
	}
	order := make(chan string, 2)
	go func() {
		if n, err := p.acquire(ctx, 1<<30, false); err == nil {
			order <- "large"
			p.release(n, 0)
		}
	}()
	go func() {
		if n, err := p.acquire(ctx, 10, true); err == nil {
			order <- "urgent"
			p.release(n, 0)
		}
	}()
	until(t, "both wait", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.urgent == 1
	})
	for _, n := range held {
		p.release(n, 0)
	}
	if a, b := <-order, <-order; a != "urgent" || b != "large" {
		t.Error(a, b)
	}
}

// writeBytes is writeFile by a megabyte.
func writeBytes(ctx context.Context, c *Client, name string, b []byte) error {
	_, h, err := c.Create(ctx, nil, kml.RootOID, name, os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	for off := 0; off < len(b); off += 1 << 20 {
		if _, err := h.WriteAt(ctx, b[off:min(off+1<<20, len(b))], int64(off)); err != nil {
			return errors.Join(err, h.Close())
		}
	}
	return h.Close()
}
