package p9srv_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/hugelgupf/p9/fsimpl/localfs"
	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// load sends a round of messages again and again with a number of rounds in
// flight, each with its own fids, and reads the answers in one go. It favours
// no server: one buffered read, one write for what is ready.
type load struct {
	c    net.Conn
	in   []byte
	r, w int
	out  []byte
}

// next reads an answer's type.
func (l *load) next() (wire.Type, wire.Tag, error) {
	for {
		if have := l.in[l.r:l.w]; len(have) >= wire.HeaderSize {
			size := int(binary.LittleEndian.Uint32(have))
			if len(have) >= size {
				l.r += size
				return wire.Type(have[4]), wire.Tag(binary.LittleEndian.Uint16(have[5:])), nil
			}
		}
		if err := l.flush(); err != nil {
			return 0, 0, err
		}
		if l.r > 0 {
			l.w = copy(l.in, l.in[l.r:l.w])
			l.r = 0
		}
		n, err := l.c.Read(l.in[l.w:])
		if n == 0 && err != nil {
			return 0, 0, err
		}
		l.w += n
	}
}

func (l *load) flush() error {
	if len(l.out) == 0 {
		return nil
	}
	_, err := l.c.Write(l.out)
	l.out = l.out[:0]
	return err
}

// run does n rounds, inFlight at a time. A round is a list of messages, each
// sent when the one before is answered.
func (l *load) run(n, inFlight int, round func(slot int) []wire.Msg) error {
	steps := make([][]wire.Msg, inFlight)
	at := make([]int, inFlight)
	started, done := 0, 0
	for i := range min(inFlight, n) {
		steps[i] = round(i)
		l.out = steps[i][0].Append(l.out, wire.Tag(i))
		started++
	}
	for done < n {
		typ, tag, err := l.next()
		if err != nil {
			return err
		}
		i := int(tag)
		if want := steps[i][at[i]].MsgType() + 1; typ != want {
			return fmt.Errorf("%v instead of %v", typ, want)
		}
		at[i]++
		if at[i] == len(steps[i]) {
			done++
			at[i] = 0
			if started == n {
				continue
			}
			started++
		}
		l.out = steps[i][at[i]].Append(l.out, tag)
	}
	return l.flush()
}

// operations are what the benchmarks measure: rounds of messages.
var operations = []struct {
	name  string
	round func(slot int) []wire.Msg
	bytes int64
}{
	{name: "getattr", round: func(int) []wire.Msg { return []wire.Msg{&wire.Tgetattr{FID: 1, Mask: p9.AttrMaskAll}} }},
	{name: "walk+clunk", round: func(i int) []wire.Msg {
		return []wire.Msg{walk(root, wire.FID(100+i), "f"), &wire.Tclunk{FID: wire.FID(100 + i)}}
	}},
	{name: "read4k", bytes: 4096, round: func(int) []wire.Msg { return []wire.Msg{&wire.Tread{FID: 2, Count: 4096}} }},
	{name: "write4k", bytes: 4096, round: func(int) []wire.Msg { return []wire.Msg{&wire.Twrite{FID: 2, Data: make([]byte, 4096)}} }},
	{name: "read1M", bytes: 1 << 20, round: func(int) []wire.Msg { return []wire.Msg{&wire.Tread{FID: 3, Count: 1 << 20}} }},
	{name: "readdir10000", round: func(i int) []wire.Msg {
		fid := wire.FID(100 + i)
		return []wire.Msg{
			walk(root, fid, "dir"), &wire.Tlopen{FID: fid}, &wire.Treaddir{FID: fid, Count: 1 << 20}, &wire.Tclunk{FID: fid},
		}
	}},
}

// benchTree is the tree of the benchmarks on disk.
func benchTree(b *testing.B) string {
	b.Helper()
	dir := b.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), make([]byte, 4096), 0o644); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, 1<<20), 0o644); err != nil {
		b.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "dir"), 0o755); err != nil {
		b.Fatal(err)
	}
	for i := range 10000 {
		if err := os.WriteFile(filepath.Join(dir, "dir", fmt.Sprintf("file%05d", i)), nil, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	return dir
}

// BenchmarkServer/tree/transport/operation/in flight. The memory tree answers
// at once, in place or on workers: what is left is the engine. hugelgupf is
// that library's own server with its localfs, for comparison with ours and the
// same localfs.
func BenchmarkServer(b *testing.B) {
	dir := benchTree(b)
	mem := func(kind string) p9.Attacher {
		fs := newMemfs(kind).put("f", "big", "dir/")
		fs.root.kids["f"].data, fs.root.kids["big"].data = make([]byte, 4096), make([]byte, 1<<20)
		for i := range 10000 {
			fs.put(fmt.Sprintf("dir/file%05d", i))
		}
		return fs
	}
	ours := func(a p9.Attacher) func(io.ReadWriteCloser) {
		srv := p9srv.New(a, p9srv.Options{})
		return func(c io.ReadWriteCloser) { _ = srv.ServeConn(context.Background(), c) }
	}
	theirs := func(c io.ReadWriteCloser) { _ = p9.NewServer(localfs.Attacher(dir)).Handle(c, c) }
	for _, tree := range []struct {
		name  string
		serve func(io.ReadWriteCloser)
	}{
		{"inplace", ours(mem("inplace"))}, {"workers", ours(mem("concurrent"))},
		{"localfs", ours(localfs.Attacher(dir))}, {"hugelgupf", theirs},
	} {
		for _, transport := range []string{"socketpair", "pipe"} {
			for _, op := range operations {
				for _, inFlight := range []int{1, 16} {
					b.Run(fmt.Sprintf("%s/%s/%s/%d", tree.name, transport, op.name, inFlight), func(b *testing.B) {
						var mine, theirs net.Conn
						if transport == "pipe" {
							mine, theirs = net.Pipe()
						} else {
							mine, theirs = socketpair(b)
						}
						done := make(chan struct{})
						go func() { tree.serve(theirs); close(done) }()
						defer func() { mine.Close(); <-done }()
						r := &raw{b, mine}
						r.ok(&wire.Tversion{Msize: 1<<20 + 24, Version: wire.Version9P2000L})
						r.ok(&wire.Tattach{FID: 0, AFID: wire.NoFID, UID: p9.UID(os.Getuid())})
						r.ok(walk(root, 1, "f"))
						r.openPath(2, p9.ReadWrite, "f")
						r.openPath(3, p9.ReadOnly, "big")
						l := &load{c: mine, in: make([]byte, 4<<20)}
						b.SetBytes(op.bytes)
						cpu := cpuTime()
						b.ResetTimer()
						if err := l.run(b.N, inFlight, op.round); err != nil {
							b.Fatal(err)
						}
						b.StopTimer()
						b.ReportMetric(float64(cpuTime()-cpu)/float64(b.N), "cpu-ns/op")
					})
				}
			}
		}
	}
}

// cpuTime is the CPU time of this process, client and server, in ns.
func cpuTime() int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
