package cachefs

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mezzofs/mezzo/kml"
)

func TestParseBandwidth(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "4096": 4096, "4k": 4096, "200K": 200 << 10, "1M": 1 << 20, "2g": 2 << 30} {
		if got, err := ParseBandwidth(in); got != want || err != nil {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "K", "-1", "4095", "1k", "1.5M", "9999999999G", "10T", "ten"} {
		if got, err := ParseBandwidth(in); err == nil {
			t.Errorf("%q: %d", in, got)
		}
	}
}

// TestRate: a limit holds for all connections together, an urgent one hardly
// waits, closing ends who waits, and a limit that is lifted lets all go.
func TestRate(t *testing.T) {
	const perSec = 1 << 20
	up, down := newRate(perSec), newRate(perSec)
	pipe := func(urgent bool) (*limited, net.Conn) {
		a, b := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, b) }() // ends with a
		return newLimited(a, up, down, urgent), b
	}
	bulk, _ := pipe(false)
	hot, _ := pipe(true)
	over := make(chan time.Duration)
	send := func(n int) {
		began := time.Now()
		if _, err := bulk.Write(make([]byte, n)); err != nil {
			t.Error(err)
		}
		over <- time.Since(began)
	}
	go send(perSec / 2)
	if d := <-over; d < 400*time.Millisecond {
		t.Errorf("%d bytes took %v with %d a second", perSec/2, d, perSec)
	}
	go send(100 * perSec)
	for range 3 {
		if _, err := hot.Write(make([]byte, 100)); err != nil {
			t.Error(err)
		}
	}
	select {
	case <-over:
		t.Error("the urgent writes waited for all others")
	default:
	}
	up.set(0)
	<-over
	up.set(MinBandwidth)
	go func() {
		_, err := bulk.Write(make([]byte, 100<<20)) // hours
		if err == nil {
			t.Error("written after close")
		}
		over <- 0
	}()
	up.wait(1, false, nil)
	if err := bulk.Close(); err != nil {
		t.Error(err)
	}
	<-over
	go func() {
		if _, err := hot.Write(make([]byte, 10<<20)); err != nil {
			t.Error(err)
		}
		over <- 0
	}()
	up.set(0)
	<-over
	hot.Close()
}

// TestBandwidth: contents take as long as the limit says, both ways, the link
// lives meanwhile and other changes go on; the limit can be lifted meanwhile.
func TestBandwidth(t *testing.T) {
	m := newMaster(t)
	ctx := ctxOf(t)
	o := optionsOf(t.TempDir(), m.sock)
	o.Bandwidth, o.Dead = 64<<10, 3*time.Second
	c, err := clientWith(t, o)
	must(t, err)
	body := noise(128 << 10)
	before := time.Now()
	must(t, writeBytes(ctx, c, "up", body))
	must(t, c.Sync(ctx))
	if d := time.Since(before); d < 1500*time.Millisecond {
		t.Errorf("%d bytes went in %v with %d a second", len(body), d, o.Bandwidth)
	}
	must(t, writeFile(ctx, m.tree, "down", string(body)))
	_, err = names(ctx, c, kml.RootOID)
	must(t, err)
	must(t, c.Sync(ctx)) // it has heard of it
	before = time.Now()
	if s, err := readFile(ctx, c, "down"); s != string(body) || err != nil {
		t.Error(len(s), err)
	}
	if d := time.Since(before); d < 1500*time.Millisecond {
		t.Errorf("%d bytes came in %v with %d a second", len(body), d, o.Bandwidth)
	}

	large := noise(8 << 20) // two minutes
	must(t, writeBytes(ctx, c, "large", large))
	until(t, "the upload", func() bool { return m.uploaded() > 0 })
	timely(t, "mkdir", func() error { _, err := c.Mkdir(ctx, nil, kml.RootOID, "d", 0o755); return err })
	until(t, "the folder at the master, in front of the large file", func() bool {
		_, err := os.Stat(filepath.Join(m.dir, "d"))
		return err == nil
	})
	if st, err := os.Stat(filepath.Join(m.dir, "large")); err == nil && st.Size() == int64(len(large)) {
		t.Error("the large file came first")
	}
	if err := c.SetBandwidth(100); err == nil {
		t.Error("a limit of 100 bytes a second")
	}
	must(t, c.SetBandwidth(0))
	must(t, c.Sync(ctx))
	if b, err := os.ReadFile(filepath.Join(m.dir, "large")); !bytes.Equal(b, large) || err != nil {
		t.Error(len(b), err)
	}
	if s := c.Status(); s.State != Connected {
		t.Error(s.State, s.Why)
	}
	equal(t, m.tree, c)
}
