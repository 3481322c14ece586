package plain_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/client"
	"github.com/mezzofs/mezzo/p9srv/plain"
)

// Serve a directory that nobody can change, and read from it.
func Example() {
	if err := serveReadOnly(); err != nil {
		fmt.Println(err)
	}
	// Output:
	// hello
	// 9p mkdir "d": read-only file system
}

func serveReadOnly() error {
	dir, err := os.MkdirTemp("", "example-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "motd"), []byte("hello\n"), 0o644); err != nil {
		return err
	}
	tree, err := plain.Open(dir, plain.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer tree.Close()
	srv := p9srv.New(tree, p9srv.Options{})
	defer srv.Close() // before the tree

	ctx := context.Background()
	mine, theirs := net.Pipe()
	go srv.ServeConn(ctx, theirs)
	conn, err := client.NewConn(ctx, mine, client.Options{})
	if err != nil {
		return err
	}
	defer conn.Close()
	root, err := conn.Attach(ctx, "", p9.UID(os.Getuid()), "")
	if err != nil {
		return err
	}
	f, _, err := root.Walk(ctx, "motd")
	if err != nil {
		return err
	}
	if _, err := f.Open(ctx, p9.ReadOnly); err != nil {
		return err
	}
	if _, err := f.CopyTo(ctx, os.Stdout, 0, 8); err != nil {
		return err
	}
	_, err = root.Mkdir(ctx, "d", 0o755, p9.NoGID)
	fmt.Println(err)
	return f.Clunk(ctx)
}
