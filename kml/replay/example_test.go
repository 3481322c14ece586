package replay_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/replay"
)

// A log of a folder and a file in it becomes a directory. Nobody has the file's
// contents, so it is a hole.
func ExampleRun() {
	dir, err := os.MkdirTemp("", "replay")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	l, err := kml.Open(filepath.Join(dir, "kml"), kml.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer l.Close()
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	src, file := kml.MakeOID(1, 2), kml.MakeOID(1, 3)
	err = l.Append(
		&kml.Record{Op: kml.OpMkdir, OID: src, Parent: kml.RootOID, Name: "src", Attr: kml.Attr{Mode: 0o40755, UID: uid, GID: gid}},
		&kml.Record{Op: kml.OpCreate, OID: file, Parent: src, Name: "a.go", Attr: kml.Attr{Mode: 0o100644, UID: uid, GID: gid}},
		&kml.Record{Op: kml.OpStore, OID: file, Attr: kml.Attr{Size: 100, Mtime: 1}},
		&kml.Record{Op: kml.OpRename, OID: file, Parent: src, Name: "a.go", NewParent: src, NewName: "b.go"},
	)
	if err != nil {
		fmt.Println(err)
		return
	}
	log, err := kml.OpenScanner(filepath.Join(dir, "kml"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer log.Close()
	res, err := replay.Run(context.Background(), log, filepath.Join(dir, "copy"), replay.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("at", res.To)
	for _, m := range res.Missing {
		fmt.Println("missing:", m.Path, m.Size)
	}
	// Output:
	// at 0.4
	// missing: src/b.go 100
}
