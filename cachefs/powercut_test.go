package cachefs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/internal/testutil/disk"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// The test binary is a client whose machine goes down: its cache, its master, and
// which run of the machine it is.
const (
	powerDir  = "MEZZO_TEST_POWER_DIR"
	powerAddr = "MEZZO_TEST_POWER_ADDR"
	powerBoot = "MEZZO_TEST_POWER_BOOT"
)

// powerText is the contents of one writing of a file: every line says which.
func powerText(name string, seq, lines int) string {
	return strings.Repeat(fmt.Sprintf("%-12s %8d %6d\n", name, seq, lines), lines)
}

// parsePower is which writing contents are of, and whether they are all of it.
func parsePower(s string) (name string, seq int, whole bool) {
	var lines int
	if _, err := fmt.Sscanf(s, "%s %d %d", &name, &seq, &lines); err != nil {
		return "", 0, s == ""
	}
	return name, seq, s == powerText(name, seq, lines)
}

// powerWork changes files through a client until its disk fails. It says of each
// writing when it begins and when it is durable.
func powerWork(dir, addr string) error {
	boot, err := strconv.Atoi(os.Getenv(powerBoot))
	if err != nil {
		return err
	}
	ctx := context.Background()
	o := optionsOf(dir, addr)
	o.boot = bootOf(boot)
	c, err := Open(ctx, o)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	rnd := rand.New(rand.NewPCG(uint64(boot), 7))
	for i := 1; ; i++ {
		name, seq := fmt.Sprintf("f%d", rnd.IntN(12)), boot*100000+i
		fmt.Printf("began %s %d\n", name, seq)
		text, file := powerText(name, seq, 1+rnd.IntN(600)), name
		save := rnd.IntN(3) == 0 // as editors do
		if save {
			file = "tmp"
		}
		synced := rnd.IntN(3) == 0
		err := powerWrite(ctx, c, file, text, rnd.IntN(2) == 0, synced && !save)
		if err == nil && save {
			err = c.Rename(ctx, nil, kml.RootOID, file, kml.RootOID, name, 0)
			if err == nil && synced {
				err = c.cache.Local().Sync() // as fsync of the folder has it
			}
		}
		if err != nil {
			fmt.Println("error", err)
			select {} // until it is killed
		}
		if synced {
			fmt.Printf("synced %s %d\n", name, seq)
		}
	}
}

// powerWrite makes a file hold text: from nothing, or over what it holds.
func powerWrite(ctx context.Context, c *Client, name, text string, trunc, sync bool) error {
	flags := os.O_RDWR
	if trunc {
		flags |= os.O_TRUNC
	}
	a, h, err := c.Create(ctx, nil, kml.RootOID, name, flags, 0o644)
	if err != nil {
		return err
	}
	_, err = h.WriteAt(ctx, []byte(text), 0)
	if err == nil && !trunc {
		_, err = c.Setattr(ctx, nil, a.OID, h, tree.SetAttr{Mask: tree.SetSize, Size: uint64(len(text))})
	}
	if err == nil && sync {
		err = h.Fsync(ctx, false)
	}
	return errors.Join(err, h.Close())
}

// TestClientPowerCut takes the machine of a client down while it works, with its
// master and without, and opens the cache again: what was promised to be durable
// is there and comes to the master, and no file has bytes that are not those of
// one writing.
func TestClientPowerCut(t *testing.T) {
	rounds := 5
	if testutil.Long() {
		rounds = 100
	}
	for _, where := range []struct {
		kind  string
		lossy bool
	}{{"ext4", false}, {"xfs", false}, {"ext4", true}} {
		name := where.kind
		if where.lossy {
			name += " on a lossy disk"
		}
		t.Run(name, func(t *testing.T) {
			rnd := testutil.Rand(t)
			var losing *rand.Rand
			if where.lossy {
				losing = rand.New(rand.NewPCG(rnd.Uint64(), 1))
			}
			m := newMaster(t)
			p := &powerClient{t: t, m: m, proxy: newProxy(t, m.sock), d: disk.NewOf(t, where.kind, 400<<20, losing),
				began: map[string]int{}, synced: map[string]int{}}
			for n := range rounds {
				p.round(n, rnd.IntN(2) == 0, time.Duration(30+rnd.IntN(300))*time.Millisecond)
				p.check(n)
				if t.Failed() {
					t.Fatalf("round %d", n)
				}
			}
			t.Logf("%d rounds: %d writings, %d promises kept; %d changes forgotten; %d writes lost by the disk", rounds, p.writings, p.promises, p.forgotten, p.d.Lost)
		})
	}
}

type powerClient struct {
	t     *testing.T
	m     *testMaster
	proxy *proxy
	d     *disk.Disk

	began, synced      map[string]int // by name, the last
	writings, promises int
	forgotten          int
}

func (p *powerClient) dir() string { return filepath.Join(p.d.Mnt, "cache") }

// round lets a client work for a while, without its master from the middle on if
// away, and takes its machine down.
func (p *powerClient) round(n int, away bool, after time.Duration) {
	t := p.t
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), powerDir+"="+p.dir(), powerAddr+"="+p.proxy.addr, fmt.Sprintf("%s=%d", powerBoot, 2*n+1))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	sc := bufio.NewScanner(out)
	if !sc.Scan() || sc.Text() != "ready" {
		_ = cmd.Wait()
		t.Fatalf("the client did not start: %s %s", sc.Text(), stderr.String())
	}
	var cutting atomic.Bool
	if away {
		time.AfterFunc(after/2, func() { p.proxy.cut(true) })
	}
	timer := time.AfterFunc(after, func() {
		cutting.Store(true)
		p.d.CutPower(t)
		_ = cmd.Process.Kill()
	})
	defer timer.Stop()
	for sc.Scan() {
		var name string
		var seq int
		late := cutting.Load() // a promise made while the power goes is void
		if _, err := fmt.Sscanf(sc.Text(), "began %s %d", &name, &seq); err == nil {
			p.began[name] = seq
			p.writings++
		} else if _, err := fmt.Sscanf(sc.Text(), "synced %s %d", &name, &seq); err == nil && !late {
			p.synced[name] = seq
			p.promises++
		}
	}
	_ = cmd.Wait()
	if !cutting.Load() || strings.Contains(stderr.String(), "panic") {
		t.Fatalf("the client ended by itself: %s", stderr.String())
	}
	p.d.Unmount(t)
	p.d.Mount(t)
}

// check opens the cache again.
func (p *powerClient) check(n int) {
	t := p.t
	t.Helper()
	ctx := ctxOf(t)
	p.proxy.cut(true)
	o := optionsOf(p.dir(), p.proxy.addr)
	o.boot = bootOf(2*n + 2)
	c, err := Open(ctx, o)
	must(t, err)
	p.forgotten += c.cache.Forgotten()
	p.look(n, c, true) // what is here, without the master
	p.proxy.open()
	must(t, c.WaitState(ctx, func(s State) bool { return s == Connected }))
	must(t, c.Sync(ctx))
	p.look(n, c, false)
	p.look(n, p.m.tree, false)
	equal(t, p.m.tree, c)
	must(t, c.Close(ctx))
	clear(p.began)
	clear(p.synced)
}

// look holds every file against what was promised of it; what cannot be read
// without the master may be missing.
func (p *powerClient) look(n int, fs tree.FS, away bool) {
	t := p.t
	t.Helper()
	ctx := ctxOf(t)
	all, err := names(ctx, fs, kml.RootOID)
	if away && err != nil {
		return
	}
	must(t, err)
	there := map[string]bool{}
	for _, name := range all {
		there[name] = true
		text, err := readFile(ctx, fs, name)
		if away && errors.Is(err, unix.EHOSTDOWN) {
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		_, seq, whole := parsePower(text)
		promised := p.synced[name]
		switch {
		case !whole:
			t.Errorf("%s: %d bytes, not of one writing: %.60q", name, len(text), text)
		case !away && seq < promised:
			t.Errorf("%s: has %d, promised was %d (last begun %d)", name, seq, promised, p.began[name])
		}
	}
	if away {
		return
	}
	for name, seq := range p.synced {
		if !there[name] {
			t.Errorf("%s: promised as of %d, and gone", name, seq)
		}
	}
}
