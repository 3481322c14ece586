package p9srv_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"

	"github.com/hugelgupf/p9/fsimpl/templatefs"
	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/client"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// object is a File with attributes that can be opened; the examples' Files are
// objects that do one thing more.
type object struct {
	templatefs.NoopFile
	mode p9.FileMode
	path uint64
}

func (o *object) qid() p9.QID { return p9.QID{Type: wire.QIDOf(o.mode), Path: o.path} }

func (o *object) GetAttr(p9.AttrMask) (p9.QID, p9.AttrMask, p9.Attr, error) {
	return o.qid(), p9.AttrMask{Mode: true}, p9.Attr{Mode: o.mode}, nil
}

func (o *object) Open(p9.OpenFlags) (p9.QID, uint32, error) { return o.qid(), 0, nil }

func file() object   { return object{mode: p9.ModeRegular | 0o644, path: 2} }
func folder() object { return object{mode: p9.ModeDirectory | 0o755, path: 1} }

// tree is a tree of which only the root matters.
type tree struct{ root p9.File }

func (t tree) Attach() (p9.File, error) { return t.root, nil }

// serve serves root over a pipe and calls f with a fid for it.
func serve(root p9.File, f func(ctx context.Context, fid *client.Fid) error) {
	ctx := context.Background()
	srv := p9srv.New(tree{root}, p9srv.Options{})
	defer srv.Close()
	mine, theirs := net.Pipe()
	go srv.ServeConn(ctx, theirs)
	conn, err := client.NewConn(ctx, mine, client.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	fid, err := conn.Attach(ctx, "glenda", p9.NoUID, "")
	if err == nil {
		err = f(ctx, fid)
	}
	if err != nil {
		fmt.Println(err)
	}
}

// meeting is a folder whose mkdir waits for another one.
type meeting struct {
	object
	here sync.WaitGroup
}

func (*meeting) Concurrent() {}

func (m *meeting) Mkdir(name string, _ p9.FileMode, _ p9.UID, _ p9.GID) (p9.QID, error) {
	m.here.Done()
	m.here.Wait()
	return p9.QID{Type: p9.TypeDir, Path: uint64(len(name))}, nil
}

// The engine takes no locks for a Concurrent File: two operations in one folder
// meet, which they would not in a plain File.
func ExampleConcurrent() {
	m := &meeting{object: folder()}
	m.here.Add(2)
	serve(m, func(ctx context.Context, fid *client.Fid) error {
		made := make(chan error)
		for _, name := range []string{"a", "b"} {
			go func() { _, err := fid.Mkdir(ctx, name, 0o755, p9.NoGID); made <- err }()
		}
		err := errors.Join(<-made, <-made)
		fmt.Println("both were made:", err == nil)
		return nil
	})
	// Output: both were made: true
}

// mortal is a file that can be removed without naming its folder.
type mortal struct{ meeting }

func (*mortal) Remove(context.Context) error {
	fmt.Println("removed")
	return nil
}

// Tremove removes what a fid stands for, by whatever name.
func ExampleRemover() {
	serve(&mortal{meeting{object: file()}}, func(ctx context.Context, fid *client.Fid) error { return fid.Remove(ctx) })
	// Output: removed
}

// renamed is a file that can be renamed without naming its folder.
type renamed struct{ meeting }

func (*renamed) RenameTo(_ context.Context, name string) error {
	fmt.Println("renamed to", name)
	return nil
}

// ask sends a message and returns its answer.
func ask(c net.Conn, tag wire.Tag, m wire.Msg) wire.Msg {
	if _, err := c.Write(m.Append(nil, tag)); err != nil {
		return nil
	}
	frame := make([]byte, 4)
	if _, err := io.ReadFull(c, frame); err != nil {
		return nil
	}
	frame = append(frame, make([]byte, binary.LittleEndian.Uint32(frame)-4)...)
	if _, err := io.ReadFull(c, frame[4:]); err != nil {
		return nil
	}
	_, answer, err := wire.Unmarshal(frame)
	if err != nil {
		return nil
	}
	return answer
}

// In 9P2000 and 9P2000.u a Twstat with a name renames.
func ExampleRenamer() {
	srv := p9srv.New(tree{&renamed{meeting{object: file()}}}, p9srv.Options{})
	defer srv.Close()
	mine, theirs := net.Pipe()
	defer mine.Close()
	go srv.ServeConn(context.Background(), theirs)
	ask(mine, wire.NoTag, &wire.Tversion{Msize: 8192, Version: wire.Version9P2000U})
	ask(mine, 0, &wire.Tattach{FID: 0, AFID: wire.NoFID, Uname: "glenda", UID: p9.NoUID})
	const same = ^uint32(0)
	st := wire.Stat{Mode: same, Atime: same, Mtime: same, Length: ^uint64(0), Name: "new", NUID: p9.NoUID, NGID: p9.NoGID, NMUID: p9.NoUID}
	fmt.Println(ask(mine, 1, &wire.Twstat{FID: 0, Stat: st}).MsgType())
	// Output:
	// renamed to new
	// Rwstat
}

// cached is a file of which some is at hand, and the rest takes a while.
type cached struct {
	meeting
	cache map[int64]byte
	ctx   context.Context // of a request on another goroutine
}

// InPlace promises that a read does not block, as far as can be seen.
func (*cached) InPlace(op p9srv.InPlaceOp) bool { return op == p9srv.OpRead || op == p9srv.OpMeta }

// Bind is the File on another goroutine, where it may wait.
func (c *cached) Bind(ctx context.Context) p9.File {
	return &cached{meeting: meeting{object: c.object}, cache: c.cache, ctx: ctx}
}

func (c *cached) ReadAt(p []byte, off int64) (int, error) {
	if b, ok := c.cache[off]; ok {
		p[0] = b
		return 1, nil
	}
	if c.ctx == nil { // on the connection's own goroutine
		return 0, p9srv.ErrWouldBlock
	}
	fmt.Println("fetching byte", off)
	c.cache[off] = 'a' + byte(off)
	p[0] = c.cache[off]
	return 1, c.ctx.Err()
}

// A promise to answer in place that cannot be kept is taken back; the engine
// asks again on a goroutine where the File may wait.
func ExampleInPlacer() {
	serve(&cached{meeting: meeting{object: file()}, cache: map[int64]byte{0: 'x'}}, func(ctx context.Context, fid *client.Fid) error {
		if _, err := fid.Open(ctx, p9.ReadOnly); err != nil {
			return err
		}
		for _, off := range []int64{0, 1, 1} {
			var b [1]byte
			if _, err := fid.Read(ctx, b[:], off); err != nil {
				return err
			}
			fmt.Printf("%s\n", b)
		}
		return nil
	})
	// Output:
	// x
	// fetching byte 1
	// b
	// b
}

// patient is a file whose reads wait for ever.
type patient struct {
	object
	ctx     context.Context
	waiting chan struct{}
}

func (f *patient) Bind(ctx context.Context) p9.File {
	return &patient{object: f.object, ctx: ctx, waiting: f.waiting}
}

func (f *patient) ReadAt([]byte, int64) (int, error) {
	close(f.waiting)
	<-f.ctx.Done()
	return 0, syscall.EINTR
}

// The context that Bind gets ends with its request, here when the client has
// had enough.
func ExampleBinder() {
	f := &patient{object: file(), waiting: make(chan struct{})}
	serve(f, func(ctx context.Context, fid *client.Fid) error {
		if _, err := fid.Open(ctx, p9.ReadOnly); err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(ctx)
		go func() { <-f.waiting; cancel() }()
		_, err := fid.Read(ctx, make([]byte, 1), 0)
		fmt.Println(err)
		return nil
	})
	// Output: context canceled
}

// endless is a folder in which everything is a folder like it.
type endless struct{ meeting }

func (e *endless) WalkNames(qids []p9.QID, names []string) ([]p9.QID, p9.File, error) {
	at := e.path
	for _, name := range names {
		if name == "nothing" {
			return qids, nil, syscall.ENOENT
		}
		at = at*31 + uint64(len(name))
		qids = append(qids, p9.QID{Type: p9.TypeDir, Path: at})
	}
	to := &endless{meeting{object: folder()}}
	to.path = at
	return qids, to, nil
}

// A Walker does all names of a walk in one call.
func ExampleWalker() {
	serve(&endless{meeting{object: folder()}}, func(ctx context.Context, fid *client.Fid) error {
		_, qids, err := fid.Walk(ctx, "usr", "glenda", "bin")
		fmt.Println(len(qids), err)
		_, qids, err = fid.Walk(ctx, "usr", "nothing", "bin")
		fmt.Println(len(qids), err)
		return nil
	})
	// Output:
	// 3 <nil>
	// 1 9p walk "nothing": no such file or directory
}

// numbers is a folder with as many entries as one reads.
type numbers struct{ meeting }

func (*numbers) ReadDirContext(_ context.Context, offset uint64, add func(p9srv.Dirent) bool) error {
	for i := offset + 1; i <= 1000; i++ {
		if !add(p9srv.Dirent{QID: p9.QID{Path: i}, Offset: i, Type: wire.DTRegular, Name: fmt.Sprint(i)}) {
			return nil // no more room; the client goes on from the last offset
		}
	}
	return nil
}

// A DirReader hands out entries until the answer is full, with the types that
// Linux wants to know.
func ExampleDirReader() {
	serve(&numbers{meeting{object: folder()}}, func(ctx context.Context, fid *client.Fid) error {
		if _, err := fid.Open(ctx, p9.ReadOnly); err != nil {
			return err
		}
		n := 0
		for d, err := range fid.Entries(ctx) {
			if err != nil {
				return err
			}
			if n++; n == 1000 {
				fmt.Println(d.Name, uint8(d.Type))
			}
		}
		return nil
	})
	// Output: 1000 8
}

// packed is numbers that packs the answer itself.
type packed struct{ numbers }

func (*packed) FillDir(offset uint64, p *wire.DirPacker) error {
	for i := offset + 1; i <= 3; i++ {
		if !p.Add(p9.Dirent{QID: p9.QID{Path: i}, Offset: i, Type: p9.QIDType(wire.DTRegular), Name: strings.Repeat("x", int(i))}) {
			break
		}
	}
	return nil
}

// A DirFiller packs its entries into the answer itself.
func ExampleDirFiller() {
	serve(&packed{numbers{meeting{object: folder()}}}, func(ctx context.Context, fid *client.Fid) error {
		if _, err := fid.Open(ctx, p9.ReadOnly); err != nil {
			return err
		}
		for d, err := range fid.Entries(ctx) {
			fmt.Println(d.Name, err)
		}
		return nil
	})
	// Output:
	// x <nil>
	// xx <nil>
	// xxx <nil>
}
