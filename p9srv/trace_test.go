package p9srv_test

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// transcript collects trace lines.
type transcript struct {
	mu sync.Mutex
	b  strings.Builder
}

func (tr *transcript) line(_ uint64, s string) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	fmt.Fprintln(&tr.b, s)
}

func (tr *transcript) String() string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.b.String()
}

const root = wire.FID(0)

func version() wire.Msg { return &wire.Tversion{Msize: 8192, Version: wire.Version9P2000L} }
func attach() wire.Msg  { return &wire.Tattach{AFID: wire.NoFID, Uname: "u"} }

func walk(from, to wire.FID, names ...string) wire.Msg {
	return &wire.Twalk{FID: from, NewFID: to, Names: names}
}

// same is s with what is zero left as it is.
func same(s wire.Stat) wire.Stat {
	keep := func(n *uint32) {
		if *n == 0 {
			*n = ^uint32(0)
		}
	}
	keep(&s.Mode)
	keep(&s.Atime)
	keep(&s.Mtime)
	if s.Length == 0 {
		s.Length = ^uint64(0)
	}
	s.NUID, s.NGID, s.NMUID = p9.NoUID, p9.NoGID, p9.NoUID
	return s
}

// plain is s in 9P2000.
func plain(s wire.Stat) wire.Stat {
	s.Plain = true
	return s
}

// scenarios are conversations whose every answer is in a golden file. They are
// held with each kind of tree, which must not make a difference.
var scenarios = map[string][]wire.Msg{
	"version": {
		&wire.Tversion{Msize: 8192, Version: "9P2000.x"},
		&wire.Tversion{Msize: 100, Version: wire.Version9P2000L},
		&wire.Tversion{Msize: 8192, Version: "9P2000.L.Google.7"},
		&wire.Tversion{Msize: 1 << 30, Version: wire.Version9P2000L},
		attach(),
		// Again: fid 0 is gone.
		version(),
		&wire.Tgetattr{FID: root},
		&wire.Tauth{AFID: 1, UID: 5},
		&wire.Tattach{FID: 3, AFID: 1},
		&wire.Tattach{FID: 3, AFID: wire.NoFID, Aname: "/a/b"},
		&wire.Tattach{FID: 3, AFID: wire.NoFID},
		&wire.Tattach{FID: 4, AFID: wire.NoFID, Aname: "a/none"},
		&wire.Tattach{FID: wire.NoFID, AFID: wire.NoFID},
		// ".." does not lead out of what was attached.
		walk(3, 4, "..", "f"),
		walk(3, 5, "..", "..", ".."),
	},
	"walk": {
		version(), attach(),
		walk(root, 1, "a", "b"),
		walk(root, 2, "a", "none", "b"), // stops after one
		&wire.Tgetattr{FID: 2},          // and made no fid
		walk(root, 2, "none"),
		walk(root, 1, "f"), // in use
		walk(root, root, "a"),
		walk(root, 3, "b"),
		walk(root, root, ".."),
		walk(root, root, "..", "..", "a"),
		walk(root, root, ".."),
		walk(1, 1),             // onto itself
		walk(1, 4, "..", ".."), // up
		walk(9, 5, "a"),
		walk(root, wire.NoFID),
		walk(root, 6, "f", "x"), // through a file
		walk(root, 6, "a/b"),
		walk(root, 6, "a", "b/f"),
		walk(root, 6, ""),
		walk(root, 6, "."),
		walk(root, 6, "x\x00"),
		walk(root, 6, strings.Repeat("x", 256)),
		walk(root, 6, strings.Split(strings.Repeat("../", 15)+"a", "/")...),
		walk(root, 7, "f"), &wire.Tlopen{FID: 7},
		walk(7, 8), // a copy of an open fid is not open
		&wire.Tread{FID: 8, Count: 10},
		walk(7, 7), // an open fid does not move
		&wire.Tclunk{FID: 6}, &wire.Tclunk{FID: 6},
	},
	"open": {
		version(), attach(),
		walk(root, 1, "f"),
		&wire.Tread{FID: 1, Count: 10},
		&wire.Twrite{FID: 1, Data: []byte("x")},
		&wire.Treaddir{FID: 1, Count: 100},
		&wire.Tfsync{FID: 1},
		&wire.Tlopen{FID: 1, Flags: p9.ReadOnly | 0o100 | 0o200},
		&wire.Tlopen{FID: 1},
		&wire.Twrite{FID: 1, Data: []byte("x")},
		&wire.Tread{FID: 1, Count: 8},
		&wire.Tread{FID: 1, Offset: 8, Count: 100},
		&wire.Tread{FID: 1, Offset: 1000, Count: 100},
		&wire.Tread{FID: 1, Offset: 1 << 63, Count: 100},
		&wire.Tread{FID: 1, Count: 0},
		&wire.Treaddir{FID: 1, Count: 100},
		walk(root, 2, "f"),
		&wire.Tlopen{FID: 2, Flags: p9.WriteOnly},
		&wire.Tread{FID: 2, Count: 8},
		&wire.Twrite{FID: 2, Data: []byte("CON")},
		&wire.Twrite{FID: 2, Offset: 1<<63 - 2, Data: []byte("CON")},
		&wire.Tread{FID: 1, Count: 8},
		&wire.Tfsync{FID: 2, Datasync: 1}, &wire.Tfsync{FID: 2, Short: true},
		walk(root, 3, "a"),
		&wire.Tlopen{FID: 3, Flags: p9.ReadWrite},
		&wire.Tlopen{FID: 3},
		&wire.Tread{FID: 3, Count: 8},
		&wire.Twrite{FID: 3, Data: []byte("x")},
		walk(root, 4),
		&wire.Tsymlink{DFID: root, Name: "l", Target: "/f"},
		walk(root, 5, "l"), &wire.Tlopen{FID: 5}, &wire.Treadlink{FID: 5}, &wire.Treadlink{FID: 1},
		walk(5, 6, "x"),
		walk(root, 6, "strange"), &wire.Tlopen{FID: 6}, &wire.Tread{FID: 6, Count: 8},
	},
	"create": {
		version(), attach(),
		walk(root, 1),
		&wire.Tlcreate{FID: 1, Name: "new", Flags: p9.ReadWrite, Mode: 0o104755, GID: 7},
		&wire.Tgetattr{FID: 1, Mask: p9.AttrMaskAll},
		&wire.Twrite{FID: 1, Offset: 3, Data: []byte("abc")},
		&wire.Tread{FID: 1, Count: 10},
		&wire.Tlcreate{FID: 1, Name: "again"},
		walk(root, 2), &wire.Tlcreate{FID: 2, Name: "new"},
		&wire.Tlcreate{FID: 2, Name: ""}, &wire.Tlcreate{FID: 2, Name: ".."}, &wire.Tlcreate{FID: 2, Name: "a/b"},
		&wire.Tlcreate{FID: 2, Name: strings.Repeat("n", 256)},
		walk(root, 3, "f"), &wire.Tlcreate{FID: 3, Name: "x"},
		&wire.Tmkdir{DFID: 2, Name: "d", Mode: 0o40755, GID: 8}, &wire.Tmkdir{DFID: 2, Name: "d"},
		&wire.Tmkdir{DFID: 2, Name: "."}, &wire.Tmkdir{DFID: 3, Name: "d"},
		&wire.Tmknod{DFID: 2, Name: "p", Mode: 0o10600}, &wire.Tsymlink{DFID: 2, Name: "x/y", Target: "t"},
		&wire.Tlink{DFID: 2, FID: 3, Name: "hard"}, &wire.Tlink{DFID: 2, FID: 2, Name: "dir"},
		&wire.Tlink{DFID: 2, FID: 99, Name: "none"},
		&wire.Tgetattr{FID: 3},
		&wire.Tsetattr{FID: 3, Valid: p9.SetAttrMask{Permissions: true, Size: true}, Attr: p9.SetAttr{Permissions: 0o600, Size: 3}},
		&wire.Tgetattr{FID: 3},
		&wire.Tstatfs{FID: 3},
		&wire.Tlopen{FID: 2}, &wire.Treaddir{FID: 2, Count: 4096},
	},
	"readdir": {
		version(), attach(),
		walk(root, 1), &wire.Treaddir{FID: 1, Count: 100}, &wire.Tlopen{FID: 1},
		&wire.Treaddir{FID: 1, Count: 24},            // too small for any entry
		&wire.Treaddir{FID: 1, Count: 25},            // one
		&wire.Treaddir{FID: 1, Count: 74, Offset: 1}, // one, and no room for a longer one
		&wire.Treaddir{FID: 1, Count: 4096, Offset: 2},
		&wire.Treaddir{FID: 1, Count: 4096, Offset: 99},
		&wire.Treaddir{FID: 1, Count: 1 << 31}, // again from the start
	},
	"unlink": {
		version(), attach(),
		walk(root, 1, "f"), &wire.Tlopen{FID: 1, Flags: p9.ReadWrite},
		walk(root, 2, "a", "b"),
		&wire.Tunlinkat{DFID: root, Name: "f", Flags: 0x200},
		&wire.Tunlinkat{DFID: root, Name: "f"},
		&wire.Tunlinkat{DFID: root, Name: "f"},
		&wire.Tread{FID: 1, Count: 8}, &wire.Tgetattr{FID: 1},
		&wire.Tsetattr{FID: 1, Valid: p9.SetAttrMask{Size: true}, Attr: p9.SetAttr{Size: 2}},
		&wire.Tunlinkat{DFID: root, Name: "a"}, &wire.Tunlinkat{DFID: root, Name: "a", Flags: 0x200},
		&wire.Tunlinkat{DFID: root, Name: "a", Flags: 1},
		&wire.Tunlinkat{DFID: root, Name: ".."}, &wire.Tunlinkat{DFID: root, Name: "a/b"},
		&wire.Tunlinkat{DFID: 1, Name: "x"},
		walk(2, 3, "f"),
		&wire.Tremove{FID: 3}, &wire.Tgetattr{FID: 3},
		walk(2, 4), &wire.Tremove{FID: 4},
		walk(root, 5), &wire.Tremove{FID: 5}, &wire.Tgetattr{FID: 5},
		&wire.Tunlinkat{DFID: root, Name: "a", Flags: 0x200},
	},
	"rename": {
		version(), attach(),
		walk(root, 1, "a", "b", "f"), walk(root, 2, "a", "b"), walk(root, 3, "a"),
		&wire.Trenameat{OldDFID: root, OldName: "a", NewDFID: root, NewName: "z"},
		walk(2, 4, "f"), walk(2, 5, "..", "b", "f"), walk(root, 6, "a"),
		&wire.Trenameat{OldDFID: root, OldName: "a", NewDFID: root, NewName: "y"},
		&wire.Trenameat{OldDFID: 2, OldName: "f", NewDFID: root, NewName: "g"},
		&wire.Tgetattr{FID: 1}, walk(root, 7, "g"),
		&wire.Trename{FID: 1, DFID: 2, Name: "h"}, walk(2, 8, "h"),
		&wire.Trename{FID: root, DFID: 2, Name: "r"},
		&wire.Trename{FID: 1, DFID: 1, Name: "r"},
		&wire.Trename{FID: 1, DFID: 99, Name: "r"},
		&wire.Trenameat{OldDFID: root, OldName: "..", NewDFID: root, NewName: "y"},
		&wire.Trenameat{OldDFID: root, OldName: "z", NewDFID: root, NewName: "y/x"},
		&wire.Trenameat{OldDFID: root, OldName: "z", NewDFID: 1, NewName: "y"},
		&wire.Trenameat{OldDFID: root, OldName: "f", NewDFID: 2, NewName: "h"}, // over another
		walk(2, 9, "h"), &wire.Tgetattr{FID: 9},
		&wire.Trenameat{OldDFID: root, OldName: "z", NewDFID: 2, NewName: "z"}, // into itself
		&wire.Trename{FID: 3, DFID: 2, Name: "z"},
	},
	"xattr": {
		version(), attach(),
		walk(root, 1, "f"),
		&wire.Txattrwalk{FID: 1, NewFID: 2},
		&wire.Tread{FID: 2, Count: 10}, &wire.Tclunk{FID: 2},
		&wire.Txattrwalk{FID: 1, NewFID: 2, Name: "user.a"},
		walk(1, 3), &wire.Txattrcreate{FID: 3, Name: "user.a", Size: 5},
		&wire.Twrite{FID: 3, Data: []byte("abc")}, &wire.Twrite{FID: 3, Offset: 1, Data: []byte("d")},
		&wire.Twrite{FID: 3, Offset: 3, Data: []byte("def")}, &wire.Twrite{FID: 3, Offset: 3, Data: []byte("de")},
		&wire.Tread{FID: 3, Count: 10}, &wire.Tlopen{FID: 3}, walk(3, 9),
		&wire.Tclunk{FID: 3},
		&wire.Txattrwalk{FID: 1, NewFID: 2, Name: "user.a"},
		&wire.Tread{FID: 2, Count: 2}, &wire.Tread{FID: 2, Offset: 2, Count: 9}, &wire.Tread{FID: 2, Offset: 9, Count: 9},
		&wire.Twrite{FID: 2, Data: []byte("x")}, &wire.Tgetattr{FID: 2}, &wire.Tclunk{FID: 2},
		walk(1, 3), &wire.Txattrcreate{FID: 3, Name: "user.short", Size: 5}, &wire.Tclunk{FID: 3}, &wire.Tclunk{FID: 3},
		walk(1, 3), &wire.Txattrcreate{FID: 3, Name: "user.a", Flags: 1}, &wire.Tclunk{FID: 3},
		walk(1, 3), &wire.Txattrcreate{FID: 3, Name: "user.b"}, &wire.Tclunk{FID: 3},
		&wire.Txattrwalk{FID: 1, NewFID: 2}, &wire.Tread{FID: 2, Count: 100}, &wire.Tclunk{FID: 2},
		walk(1, 3), &wire.Txattrcreate{FID: 3, Name: "user.a", Flags: 2}, &wire.Tclunk{FID: 3},
		&wire.Txattrwalk{FID: 1, NewFID: 2}, &wire.Tread{FID: 2, Count: 100},
		walk(1, 3), &wire.Txattrcreate{FID: 3, Name: "user.a", Size: 1 << 40}, &wire.Txattrcreate{FID: 3, Size: 1},
		&wire.Txattrcreate{FID: 3, Name: "user.a", Flags: 8},
		&wire.Txattrwalk{FID: 1, NewFID: 1}, &wire.Txattrwalk{FID: 1, NewFID: 3},
	},
	"lock": {
		version(), attach(),
		walk(root, 1, "f"),
		&wire.Tlock{FID: 1, Type: p9.WriteLock, Client: "a"}, &wire.Tlopen{FID: 1, Flags: p9.ReadWrite},
		&wire.Tlock{FID: 1, Type: p9.WriteLock, Client: "a"}, &wire.Tlock{FID: 1, Type: p9.WriteLock, Client: "b"},
		&wire.Tlock{FID: 1, Type: p9.Unlock, Client: "a"}, &wire.Tlock{FID: 1, Type: 3},
		&wire.Tgetlock{FID: 1},
	},
	"unix": {
		&wire.Tversion{Msize: 8192, Version: wire.Version9P2000U},
		attach(),
		&wire.Tstat{FID: root}, walk(root, 1, "a", "b", "f"), &wire.Tstat{FID: 1}, walk(1, 2), &wire.Tstat{FID: 2},
		walk(root, 3, "none"),                                                               // with a number
		&wire.Tgetattr{FID: 1}, &wire.Tlopen{FID: 1}, &wire.Treaddir{FID: root, Count: 100}, // not of the dialect
		&wire.Topen{FID: 1, Mode: wire.OpenRdWr | wire.OpenTrunc}, &wire.Topen{FID: 1},
		&wire.Twrite{FID: 1, Data: []byte("hello")}, &wire.Tread{FID: 1, Count: 100}, &wire.Tread{FID: 1, Offset: 5, Count: 100},
		&wire.Topen{FID: root, Mode: wire.OpenWrite},
		walk(root, 4), &wire.Tcreate{FID: 4, Name: "d", Perm: wire.DMDir | 0o750}, &wire.Tread{FID: 4, Count: 1000},
		walk(root, 5, "d"), &wire.Tcreate{FID: 5, Name: "f", Perm: wire.DMSetUID | 0o755, Mode: wire.OpenWrite},
		&wire.Twrite{FID: 5, Data: []byte("x")}, &wire.Tstat{FID: 5},
		walk(root, 6, "d"), &wire.Tcreate{FID: 6, Name: "f", Perm: 0o644}, // is there
		&wire.Tcreate{FID: 6, Name: "l", Perm: wire.DMSymlink | 0o777, Extension: "../f"}, &wire.Tstat{FID: 6}, &wire.Topen{FID: 6},
		walk(root, 7, "d"), &wire.Tcreate{FID: 7, Name: "again", Perm: wire.DMLink, Extension: "5\n"}, &wire.Tstat{FID: 7},
		walk(root, 8, "d"), &wire.Tcreate{FID: 8, Name: "none", Perm: wire.DMLink, Extension: "99"},
		&wire.Tcreate{FID: 8, Name: "dev", Perm: wire.DMDevice | 0o600, Extension: "b 8 0"}, &wire.Tstat{FID: 8},
		walk(root, 9, "d"), &wire.Tcreate{FID: 9, Name: "dev2", Perm: wire.DMDevice | 0o600, Extension: "z"},
		&wire.Tcreate{FID: 9, Name: "p", Perm: wire.DMNamedPipe | 0o600},
		// What is left as it is, chmod, truncate, rename.
		&wire.Twstat{FID: 5, Stat: same(wire.Stat{})},
		&wire.Twstat{FID: 5, Stat: same(wire.Stat{Mode: 0o600, Length: 3})}, &wire.Tstat{FID: 5},
		&wire.Twstat{FID: 5, Stat: same(wire.Stat{Name: "g"})}, &wire.Tstat{FID: 5},
		&wire.Twstat{FID: 4, Stat: same(wire.Stat{Length: 3})}, &wire.Twstat{FID: 5, Stat: same(wire.Stat{Name: "a/b"})},
		// A folder in pieces, each of whole entries.
		walk(root, 10, "a"), &wire.Topen{FID: 10}, &wire.Tread{FID: 10, Count: 10}, &wire.Tread{FID: 10, Count: 100},
		&wire.Tread{FID: 10, Offset: 67, Count: 100}, &wire.Tread{FID: 10, Offset: 3, Count: 100}, &wire.Tread{FID: 10, Count: 100},
		// A file that goes with its fid.
		walk(root, 11), &wire.Tcreate{FID: 11, Name: "tmp", Perm: 0o600, Mode: wire.OpenRdWr | wire.OpenRClose}, &wire.Tclunk{FID: 11},
		walk(root, 11, "tmp"),
		&wire.Tremove{FID: 6}, walk(root, 6, "d", "l"),
	},
	"old": {
		&wire.Tversion{Msize: 8192, Version: wire.Version9P2000},
		&wire.Tattach{AFID: wire.NoFID, Uname: "u", UID: p9.NoUID, Plain: true},
		&wire.Tstat{FID: root}, walk(root, 1, "f"), &wire.Tstat{FID: 1}, walk(root, 2, "none"),
		walk(root, 2), &wire.Tcreate{FID: 2, Name: "l", Perm: wire.DMSymlink | 0o777, Plain: true},
		&wire.Tcreate{FID: 2, Name: "d", Perm: wire.DMDir | 0o700, Plain: true}, &wire.Tstat{FID: 2},
		&wire.Twstat{FID: 1, Stat: plain(same(wire.Stat{Name: "g", GID: "7"}))}, &wire.Tstat{FID: 1},
		&wire.Twstat{FID: 1, Stat: plain(same(wire.Stat{GID: "staff"}))},
		&wire.Tremove{FID: 1}, walk(root, 1, "g"),
	},
	"flush": {
		version(), attach(),
		&wire.Tflush{OldTag: 77}, &wire.Tflush{OldTag: 1},
	},
}

func TestTrace(t *testing.T) {
	for name, steps := range scenarios {
		for _, kind := range []string{"plain", "concurrent", "inplace", "fickle"} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				testutil.CheckLeaks(t)
				fs := newMemfs(kind).put("a/b/f", "f", "readme", "strange")
				fs.root.kids["f"].name = "f"
				var tr transcript
				var log strings.Builder
				_, r := serveRaw(t, fs, p9srv.Options{
					Trace: tr.line,
					Log:   slog.New(slog.NewTextHandler(&log, nil)),
					Users: func(uid uint32, name string) (p9srv.User, error) { return p9srv.User{UID: uid}, nil },
				})
				for _, m := range steps {
					r.rpc(m)
				}
				testutil.Golden(t, filepath.Join("trace", name+".golden"), []byte(tr.String()))
				if strings.Contains(log.String(), "panic") {
					t.Errorf("logged: %s", log.String())
				}
				r.ok(version()) // closes every file
				if open, _ := fs.files(); open != 0 {
					t.Errorf("%d Files are left open", open)
				}
			})
		}
	}
}
