package cachefs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/mezzofs/mezzo/kml"
)

// BenchmarkCreateWriteClose is a new small file, until close returns and until
// the master has its contents, one after the other.
func BenchmarkCreateWriteClose(b *testing.B) {
	for _, sync := range []bool{false, true} {
		b.Run(fmt.Sprintf("sync=%v", sync), func(b *testing.B) {
			m := newMaster(b)
			ctx := context.Background()
			c, err := Open(ctx, Options{Dir: b.TempDir(), Addr: m.sock, Host: "h", Sync: sync})
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close(ctx)
			body := make([]byte, 4096)
			body[0] = 1
			n := 0
			for b.Loop() {
				_, h, err := c.Create(ctx, nil, kml.RootOID, fmt.Sprint(n), os.O_WRONLY, 0o644)
				if err == nil {
					_, err = h.WriteAt(ctx, body, 0)
				}
				if err == nil {
					err = h.Close()
				}
				if err != nil {
					b.Fatal(err)
				}
				n++
			}
			if err := c.Sync(ctx); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkColdRead opens and reads small files that are not here yet.
func BenchmarkColdRead(b *testing.B) {
	m := newMaster(b)
	ctx := context.Background()
	const files = 1000
	for i := range files {
		if err := os.WriteFile(filepath.Join(m.dir, fmt.Sprint(i)), make([]byte, 4096), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	m.stop()
	m.start() // it finds them
	left, c := 0, (*Client)(nil)
	for b.Loop() {
		if left == 0 {
			b.StopTimer()
			if c != nil {
				c.Close(ctx)
			}
			var err error
			if c, err = Open(ctx, Options{Dir: b.TempDir(), Addr: m.sock, Host: "h"}); err != nil {
				b.Fatal(err)
			}
			if _, err := names(ctx, c, kml.RootOID); err != nil {
				b.Fatal(err)
			}
			left = files
			b.StartTimer()
		}
		left--
		if _, err := readFile(ctx, c, fmt.Sprint(left)); err != nil {
			b.Fatal(err)
		}
	}
	c.Close(ctx)
}

// BenchmarkOffline is a new small file while the master is away, and
// BenchmarkReintegrate 1000 of them, made and written, until the master has all.
func BenchmarkOffline(b *testing.B) {
	m := newMaster(b)
	ctx := context.Background()
	c, err := Open(ctx, Options{Dir: b.TempDir(), Addr: m.sock, Host: "h"})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close(ctx)
	if _, err := names(ctx, c, kml.RootOID); err != nil {
		b.Fatal(err)
	}
	m.stop()
	if err := c.WaitState(ctx, func(s State) bool { return s == Disconnected }); err != nil {
		b.Fatal(err)
	}
	n := 0
	for b.Loop() {
		if err := writeFile(ctx, c, fmt.Sprint(n), "some contents"); err != nil {
			b.Fatal(err)
		}
		n++
	}
}

func BenchmarkReintegrate(b *testing.B) {
	ctx := context.Background()
	for b.Loop() {
		b.StopTimer()
		m := newMaster(b)
		c, err := Open(ctx, Options{Dir: b.TempDir(), Addr: m.sock, Host: "h"})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := names(ctx, c, kml.RootOID); err != nil {
			b.Fatal(err)
		}
		m.stop()
		if err := c.WaitState(ctx, func(s State) bool { return s == Disconnected }); err != nil {
			b.Fatal(err)
		}
		for i := range 1000 {
			if err := writeFile(ctx, c, fmt.Sprint(i), "some contents"); err != nil {
				b.Fatal(err)
			}
		}
		m.start()
		if err := c.WaitState(ctx, func(s State) bool { return s == Connected }); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := c.Sync(ctx); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		c.Close(ctx)
		m.stop()
		b.StartTimer()
	}
}
