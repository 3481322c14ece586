package cachefs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/internal/testutil/disk"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// The test binary runs itself as the process that is killed: with crashDir set
// it is a client of the master at crashAddr that works until it dies.
const (
	crashDir  = "MEZZO_TEST_CLIENT_DIR"
	crashAddr = "MEZZO_TEST_CLIENT_ADDR"
	crashSeed = "MEZZO_TEST_CLIENT_SEED"
)

func TestMain(m *testing.M) {
	if is, err := disk.Serve(os.Stdin, os.Stdout); is {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if dir := os.Getenv(crashDir); dir != "" {
		if err := crashWork(dir, os.Getenv(crashAddr)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if dir := os.Getenv(powerDir); dir != "" {
		if err := powerWork(dir, os.Getenv(powerAddr)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// crashWork makes random changes and prints a line for each that was answered.
func crashWork(dir, addr string) error {
	if err := fault.Arm(os.Getenv(fault.Env)); err != nil {
		return err
	}
	seed, err := strconv.ParseUint(os.Getenv(crashSeed), 10, 64)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := Open(ctx, Options{Dir: dir, Addr: addr, Host: "h", asIs: true})
	if err != nil {
		return err
	}
	// What the master changed before is seen: nothing here conflicts with it.
	if err := c.WaitState(ctx, func(s State) bool { return s == Connected }); err != nil {
		return err
	}
	w := &crashWorker{c: c, rnd: rand.New(rand.NewPCG(seed, 1)), seed: seed}
	for i := range 120 {
		if err := w.step(ctx, i); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	return c.Close(ctx)
}

type crashWorker struct {
	c    *Client
	rnd  *rand.Rand
	seed uint64
}

// step makes one change; that a random change makes no sense is no error.
func (w *crashWorker) step(ctx context.Context, i int) error {
	c, root := w.c, kml.RootOID
	n, to := "n"+strconv.Itoa(w.rnd.IntN(6)), "n"+strconv.Itoa(w.rnd.IntN(6))
	say := func(op kml.Op, oid kml.OID) { fmt.Printf("did %d %d\n", op, uint64(oid)) }
	var a tree.Attr
	var err error
	switch w.rnd.IntN(9) {
	case 0, 1, 2, 3:
		// The seed makes all contents ever written different ones.
		err = w.write(ctx, n, fmt.Sprintf("client %d step %d", w.seed, i))
	case 4:
		if a, err = c.Mkdir(ctx, nil, root, fmt.Sprintf("d%d-%d", w.seed, i), 0o755); err == nil {
			say(kml.OpMkdir, a.OID)
		}
	case 5:
		if a, err = c.Lookup(ctx, nil, root, n); err == nil {
			if err = c.Unlink(ctx, nil, root, n); err == nil {
				say(kml.OpUnlink, 0) // whichever object it was by then
			}
		}
	case 6:
		if a, err = c.Lookup(ctx, nil, root, n); err == nil && n != to {
			if err = c.Rename(ctx, nil, root, n, root, to, 0); err == nil {
				say(kml.OpRename, 0)
			}
		}
	case 7:
		if a, err = c.Lookup(ctx, nil, root, n); err == nil {
			_, err = c.Setattr(ctx, nil, a.OID, nil, tree.SetAttr{Mask: tree.SetMode, Mode: 0o600 | uint32(i)&0o177})
		}
	case 8:
		_, err = readFile(ctx, c, n)
	}
	var errno syscall.Errno
	if errors.As(err, &errno) && errno != syscall.EIO {
		return nil
	}
	return err
}

// What begins with large is in the file largeTimes.
const (
	large      = "large "
	largeTimes = 6000
)

// write replaces the contents of a file, in two steps now and then.
func (w *crashWorker) write(ctx context.Context, name, s string) error {
	a, h, err := w.c.Create(ctx, nil, kml.RootOID, name, unix.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	fmt.Printf("writing %d\n", uint64(a.OID))
	body := s
	if w.rnd.IntN(5) == 0 { // too large to go with its record
		s = large + s
		body = strings.Repeat(s, largeTimes)
	}
	_, err = w.c.Setattr(ctx, nil, a.OID, h, tree.SetAttr{Mask: tree.SetSize})
	if err == nil {
		_, err = h.WriteAt(ctx, []byte(body), 0)
	}
	if err != nil {
		return errors.Join(err, h.Close())
	}
	flush := h.Flush
	if w.rnd.IntN(4) == 0 {
		flush = func(ctx context.Context) error { return h.Fsync(ctx, false) }
	}
	if err := flush(ctx); err != nil {
		return errors.Join(err, h.Close())
	}
	fmt.Printf("wrote %d %s\n", uint64(a.OID), s)
	return h.Close()
}

var clientPoints = []string{"cache.dirty", "cache.data", "cache.applied", "cache.picture", "local.appended", "outbox.frozen", "push.staged", "push.send", "push.sent", "upload.begun"}

// TestClientKilledAnywhere kills a working client at each fault point, early
// and late, opens what it left, and looks for what it had answered at the
// master. Every second round somebody else changes the same files meanwhile.
func TestClientKilledAnywhere(t *testing.T) {
	rounds := 2
	if testutil.Long() {
		rounds = 40
	}
	seeds := testutil.Rand(t)
	for _, point := range clientPoints {
		t.Run(point, func(t *testing.T) {
			for i := range rounds {
				m := newMaster(t)
				n := 1 + seeds.IntN(20)
				if point == "cache.data" {
					n = 1
				}
				clientCrash(t, m, t.TempDir(), fmt.Sprintf("%s:%d", point, n), seeds.Uint64(), 0, i%2 == 1)
				m.stop()
			}
		})
	}
}

// TestClientKilledAtRandom kills a working client at no particular point, again
// and again with the same cache.
func TestClientKilledAtRandom(t *testing.T) {
	rounds := 4
	if testutil.Long() {
		rounds = 300
	}
	rnd := testutil.Rand(t)
	m, dir := newMaster(t), t.TempDir()
	for i := range rounds {
		clientCrash(t, m, dir, "", rnd.Uint64(), time.Duration(20+rnd.IntN(300))*time.Millisecond, i%2 == 1)
	}
}

// clientCrash runs a client with its cache in dir until it is killed, heals and
// checks.
func clientCrash(t *testing.T, m *testMaster, dir, at string, seed uint64, after time.Duration, others bool) {
	t.Helper()
	ctx := ctxOf(t)
	for i := range 3 { // something to be fetched
		must(t, writeFile(ctx, m.tree, fmt.Sprintf("n%d", i), fmt.Sprintf("master %d %d", seed, i)))
	}
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.CommandContext(ctx, exe)
	cmd.Env = append(os.Environ(), crashDir+"="+dir, crashAddr+"="+m.sock, fmt.Sprintf("%s=%d", crashSeed, seed), fault.Env+"="+at)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	if at == "" {
		timer := time.AfterFunc(after, func() { cmd.Process.Kill() })
		defer timer.Stop()
	}
	var lines []string
	for sc := bufio.NewScanner(out); sc.Scan(); {
		lines = append(lines, sc.Text())
		if others && len(lines)%5 == 0 {
			err := writeFile(ctx, m.tree, fmt.Sprintf("n%d", len(lines)%6), fmt.Sprintf("master %d %d", seed, len(lines)))
			if !errors.Is(err, syscall.ESTALE) { // the client may have replaced it meanwhile
				must(t, err)
			}
		}
	}
	err = cmd.Wait()
	if err != nil && !strings.Contains(err.Error(), "killed") {
		t.Fatalf("seed %d, %q: %v: %s", seed, at, err, stderr.String())
	}
	t.Logf("seed %d, %q: %d answers, others %v: %v", seed, at, len(lines), others, err)
	c, err := Open(ctx, Options{Dir: dir, Addr: m.sock, Host: "h", asIs: true})
	if err != nil {
		t.Fatalf("seed %d, %q: %v", seed, at, err)
	}
	defer func() { must(t, c.Close(ctx)) }()
	if err := c.WaitState(ctx, func(s State) bool { return s == Connected }); err != nil {
		t.Fatalf("seed %d, %q: %v", seed, at, err)
	}
	if err := c.Sync(ctx); err != nil {
		t.Fatalf("seed %d, %q: %v\n%v", seed, at, err, c.Status())
	}
	once(t, m)
	answered(t, m, c, lines, others)
	equal(t, m.tree, c)
	if t.Failed() {
		t.Fatalf("seed %d, killed at %q, others %v", seed, at, others)
	}
}

// answered checks that the master's log has what a client had answered: each
// change, and a store of each contents that were flushed, be it in a conflict
// copy. What could not be placed lies in the cache's conflicts.
func answered(t *testing.T, m *testMaster, c *Client, lines []string, others bool) {
	t.Helper()
	site := c.cache.State().Fileset().Site
	stores, made, count := map[string]bool{}, map[kml.OID]bool{}, map[kml.Op]int{}
	r, err := m.tree.Log().ReaderAfter(0)
	must(t, err)
	defer r.Close()
	for {
		rec, err := r.TryNext()
		if err != nil {
			break
		}
		if rec.Origin.Site != site {
			continue
		}
		stores[string(rec.Digest)] = true
		count[rec.Op]++
		if rec.Op == kml.OpMkdir {
			made[rec.OID] = true
		}
	}
	aside, err := filepath.Glob(c.cache.State().Path("conflicts", "*"))
	must(t, err)
	for _, path := range aside {
		b, err := os.ReadFile(path)
		must(t, err)
		sum := blake3.Sum256(b)
		stores[string(sum[:])] = true
	}
	did := map[kml.Op]int{}
	last := map[string]int{}
	for i, l := range lines {
		for _, did := range []string{"writing ", "wrote "} {
			if text, ok := strings.CutPrefix(l, did); ok {
				oid, _, _ := strings.Cut(text, " ")
				last[oid] = i
			}
		}
	}
	for i, l := range lines {
		var op uint16
		var oid uint64
		if text, ok := strings.CutPrefix(l, "wrote "); ok {
			of, text, _ := strings.Cut(text, " ")
			if others && i != last[of] {
				continue // of what is in conflict the last may be all that is left
			}
			if strings.HasPrefix(text, large) {
				text = strings.Repeat(text, largeTimes)
			}
			sum := blake3.Sum256([]byte(text))
			if !stores[string(sum[:])] {
				t.Errorf("flushed and not at the master: %s", l)
			}
		} else if n, _ := fmt.Sscanf(l, "did %d %d", &op, &oid); n == 2 {
			did[kml.Op(op)]++
			if oid != 0 && !made[kml.OID(oid)] {
				t.Errorf("answered and not at the master: %v of %v", kml.Op(op), kml.OID(oid))
			}
		}
	}
	for op, n := range did {
		// What others changed meanwhile may stay, or stay where it is.
		if count[op] < n && !others {
			t.Errorf("%d of %v answered, %d at the master", n, op, count[op])
		}
	}
}
