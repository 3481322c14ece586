package bench9p

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mezzofs/mezzo/kml/tree"
)

// options are the flags.
type options struct {
	disk, memory string // where the trees are made
	servers      []string
	networks     []string
	shapes       []shape
	idle         crowd
	run          *regexp.Regexp
	rounds       int
	time         time.Duration
	profile      string
	// Of a server's process:
	serve, dir, socket string
}

// shape is how many rounds are in flight: depth on each connection.
type shape struct{ conns, depth int }

func (s shape) String() string { return fmt.Sprintf("%dx%d", s.conns, s.depth) }

// Main is the command; it returns the exit code.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	stderr = &shared{w: stderr}
	o, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(stderr, "bench9p:", err)
		return 2
	case o.serve != "":
		err = serve(o, stdin, stdout)
	default:
		err = bench(o, stdout, stderr)
	}
	if err != nil {
		fmt.Fprintln(stderr, "bench9p:", err)
		return 1
	}
	return 0
}

// shared is a writer that several servers write to at the same time.
type shared struct {
	mu sync.Mutex
	w  io.Writer
}

// Write is io.Writer's.
func (s *shared) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}

func parse(args []string, stderr io.Writer) (o options, err error) {
	f := flag.NewFlagSet("bench9p", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.disk, "disk", os.TempDir(), "make the trees in `DIR`")
	f.StringVar(&o.memory, "memory", "/dev/shm", "make those of rows that would measure the disk's journal in `DIR`, a tmpfs")
	servers := f.String("servers", strings.Join(kinds, ","), "compare these; ratios are to the first")
	nets := f.String("networks", strings.Join(networks, ","), "connect over these")
	shapes := f.String("shapes", "1x1,1x16,4x16", "rounds in flight: CONNECTIONSxDEPTH,...")
	idle := f.String("idle", "1000x100", "idle connections and fids on each that memory is measured with: CONNECTIONSxFIDS, or 0")
	run := f.String("run", "", "only rows that match `REGEXP`")
	f.IntVar(&o.rounds, "rounds", 5, "rounds; the median counts")
	f.DurationVar(&o.time, "time", 100*time.Millisecond, "how long a row is measured in a round")
	f.StringVar(&o.profile, "cpuprofile", "", "have our servers write CPU profiles to `FILE`.SERVER.FILESYSTEM")
	f.StringVar(&o.serve, "serve", "", "be a server of this `KIND` until the input ends")
	f.StringVar(&o.dir, "dir", "", "the folder that -serve serves")
	f.StringVar(&o.socket, "socket", "", "the unix socket of -serve")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.servers, o.networks = strings.Split(*servers, ","), strings.Split(*nets, ",")
	for _, k := range o.servers {
		if !slices.Contains(kinds, k) {
			return o, fmt.Errorf("no server %q: there are %s", k, strings.Join(kinds, ", "))
		}
	}
	for _, n := range o.networks {
		if !slices.Contains(networks, n) {
			return o, fmt.Errorf("no network %q: there are %s", n, strings.Join(networks, ", "))
		}
	}
	for s := range strings.SplitSeq(*shapes, ",") {
		conns, depth, ok := pair(s, 8, 12)
		if !ok {
			return o, fmt.Errorf("-shapes %q: want CONNECTIONSxDEPTH, like 4x16", s)
		}
		o.shapes = append(o.shapes, shape{conns, depth})
	}
	if *idle != "0" {
		var ok bool
		if o.idle.conns, o.idle.fids, ok = pair(*idle, 16, 16); !ok {
			return o, fmt.Errorf("-idle %q: want CONNECTIONSxFIDS, like 1000x100", *idle)
		}
	}
	if o.rounds < 1 || o.time <= 0 {
		return o, errors.New("-rounds and -time have to be positive")
	}
	o.run, err = regexp.Compile(*run)
	return o, err
}

// pair is two positive numbers of so many bits, with an x in between.
func pair(s string, bits1, bits2 int) (a, b int, ok bool) {
	x, y, _ := strings.Cut(s, "x")
	n, err1 := strconv.ParseUint(x, 10, bits1)
	m, err2 := strconv.ParseUint(y, 10, bits2)
	return int(n), int(m), err1 == nil && err2 == nil && n > 0 && m > 0
}

// host is the trees and servers on one file system.
type host struct {
	dir     string
	servers []*server
}

// makeTree makes what the rows use.
func makeTree(dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, "d", "e"), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, "many"), 0o755); err != nil {
		return err
	}
	for name, size := range map[string]int{"f": blockSize, "d/e/f": blockSize, "big": bigSize, "out": bigSize} {
		if err := writeFile(filepath.Join(dir, name), size); err != nil {
			return err
		}
	}
	for i := range dirEntries {
		if err := os.WriteFile(filepath.Join(dir, "many", fmt.Sprintf("file%05d", i)), nil, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// writeFile makes a file of zeros, piece by piece: of one large write the page
// cache makes folios as large as there is memory in one piece at that moment,
// and ext4 goes through all blocks of a folio for each 4 KiB written to it.
func writeFile(name string, size int) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	piece := make([]byte, 64<<10)
	for size > 0 && err == nil {
		var n int
		n, err = f.Write(piece[:min(size, len(piece))])
		size -= n
	}
	return errors.Join(err, f.Close())
}

// newHost makes the trees in a new folder under base and starts the servers. A
// journaled tree is its server's alone, so it gets one of its own.
func newHost(o options, base, name string, stderr io.Writer) (h *host, err error) {
	h = &host{}
	if h.dir, err = os.MkdirTemp(base, "bench9p-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	plain, journal := filepath.Join(h.dir, "plain"), filepath.Join(h.dir, "journal")
	if err := makeTree(plain); err != nil {
		return h, err
	}
	if slices.Contains(o.servers, kindJournal) {
		if err := makeTree(journal); err != nil {
			return h, err
		}
		if err := tree.Init(journal, tree.Options{}); err != nil {
			return h, err
		}
	}
	profile := o.profile
	if profile != "" {
		profile += "." + name
	}
	for _, k := range o.servers {
		dir := plain
		if k == kindJournal {
			dir = journal
		}
		s, err := startServer(k, dir, h.dir, profile, stderr)
		if err != nil {
			return h, fmt.Errorf("%s: %w", k, err)
		}
		h.servers = append(h.servers, s)
	}
	return h, nil
}

func (h *host) close() error {
	var err error
	for _, s := range h.servers {
		err = errors.Join(err, s.stop())
	}
	return errors.Join(err, os.RemoveAll(h.dir))
}

// bench measures and prints.
func bench(o options, stdout, stderr io.Writer) (err error) {
	var list []row
	hosts := map[bool]*host{}
	for _, r := range rows() {
		if !o.run.MatchString(r.name) {
			continue
		}
		list = append(list, r)
		if hosts[r.memory] == nil {
			base, name := o.disk, "disk"
			if r.memory {
				base, name = o.memory, "memory"
			}
			h, err := newHost(o, base, name, stderr)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, h.close()) }()
			hosts[r.memory] = h
		}
	}
	// First of all: later there would be garbage of the rows.
	if h := hosts[false]; h != nil && o.idle.conns > 0 {
		if err := o.idle.measure(h, o.networks[0], stdout); err != nil {
			return err
		}
	}
	for _, network := range o.networks {
		for _, sh := range o.shapes {
			t := table{o: o, network: network, shape: sh}
			for _, r := range list {
				if err := t.measure(r, hosts[r.memory]); err != nil {
					return err
				}
			}
			if err := t.print(stdout); err != nil {
				return err
			}
		}
	}
	return nil
}

// sample is one measurement: rounds (or MiB, for rows of data) per second, and
// CPU for each.
type sample struct{ rate, cpu float64 }

// lines are the connections of a server for a shape.
type lines []*conn

func open(s *server, network string, sh shape) (l lines, err error) {
	for i := range sh.conns {
		c, err := dial(network, s.addrs[network], s.aname, i, sh.depth, 2*askMsize)
		if err == nil {
			l = append(l, c)
			err = c.prepare()
		}
		if err != nil {
			return l, errors.Join(fmt.Errorf("%s over %s: %w", s.kind, network, err), l.close())
		}
	}
	return l, nil
}

func (l lines) close() error {
	var err error
	for _, c := range l {
		err = errors.Join(err, c.cleanUp(), c.close())
	}
	return err
}

// each runs f for all connections at once.
func (l lines) each(f func(c *conn) error) error {
	errs := make([]error, len(l))
	var g sync.WaitGroup
	for i, c := range l {
		g.Go(func() { errs[i] = f(c) })
	}
	g.Wait()
	return errors.Join(errs...)
}

// measure runs lots of rounds until they took o.time.
func measure(o options, s *server, l lines, r row) (sample, error) {
	var elapsed, used time.Duration
	done, lot := 0, len(l[0].slots)
	for elapsed < o.time {
		if r.before != nil {
			if err := l.each(func(c *conn) error { return r.before(c, lot) }); err != nil {
				return sample{}, err
			}
		}
		before, err := s.cpu()
		if err != nil {
			return sample{}, err
		}
		start := time.Now()
		if err := l.each(func(c *conn) error { return c.run(lot, r.round) }); err != nil {
			return sample{}, err
		}
		took := time.Since(start)
		after, err := s.cpu()
		if err != nil {
			return sample{}, err
		}
		if lot == len(l[0].slots) && elapsed == 0 && took < o.time {
			// The first lot warms up.
			lot *= 2
			continue
		}
		elapsed += took
		used += after - before
		done += lot * len(l)
		if took < o.time/4 && (r.most == 0 || 2*lot <= r.most) {
			lot *= 2
		}
	}
	n := float64(done)
	if r.data {
		n *= float64(l[0].payload()) / (1 << 20)
	}
	return sample{rate: n / elapsed.Seconds(), cpu: float64(used) / n}, nil
}
