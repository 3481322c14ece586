package client_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"

	"github.com/hugelgupf/p9/fsimpl/staticfs"
	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/client"
)

// attached calls f with a connection to a server of one file, "motd", and the
// root it has attached to.
func attached(f func(ctx context.Context, conn *client.Conn, root *client.Fid) error) {
	ctx := context.Background()
	err := func() error {
		tree, err := staticfs.New(staticfs.WithFile("motd", "hello\n"))
		if err != nil {
			return err
		}
		srv := p9srv.New(tree, p9srv.Options{})
		defer srv.Close()
		mine, theirs := net.Pipe()
		go srv.ServeConn(ctx, theirs)
		conn, err := client.NewConn(ctx, mine, client.Options{})
		if err != nil {
			return err
		}
		defer conn.Close()
		root, err := conn.Attach(ctx, "glenda", p9.NoUID, "")
		if err != nil {
			return err
		}
		return f(ctx, conn, root)
	}()
	if err != nil {
		fmt.Println(err)
	}
}

// Walk to a file, open it and copy it out. With an address, Dial takes the place
// of NewConn.
func Example() {
	attached(func(ctx context.Context, _ *client.Conn, root *client.Fid) error {
		f, _, err := root.Walk(ctx, "motd")
		if err != nil {
			return err
		}
		if _, err := f.Open(ctx, p9.ReadOnly); err != nil {
			return err
		}
		n, err := f.CopyTo(ctx, os.Stdout, 0, 8)
		fmt.Println(n, err)
		return f.Clunk(ctx)
	})
	// Output:
	// hello
	// 6 <nil>
}

// The server's reason is an errno, and so one of the errors that the standard
// library knows.
func ExampleError() {
	attached(func(ctx context.Context, _ *client.Conn, root *client.Fid) error {
		_, _, err := root.Walk(ctx, "nothing")
		fmt.Println(err)
		fmt.Println(errors.Is(err, fs.ErrNotExist))
		var refused *client.Error
		fmt.Println(errors.As(err, &refused), refused.Op, refused.Name)
		return nil
	})
	// Output:
	// 9p walk "nothing": no such file or directory
	// true
	// true walk nothing
}

// List a folder.
func ExampleFid_Entries() {
	attached(func(ctx context.Context, _ *client.Conn, root *client.Fid) error {
		if _, err := root.Open(ctx, p9.ReadOnly); err != nil {
			return err
		}
		for d, err := range root.Entries(ctx) {
			if err != nil {
				return err
			}
			fmt.Println(d.Name)
		}
		return nil
	})
	// Output: motd
}

// What a server refuses is an error, and the connection goes on.
func ExampleFid_CopyFrom() {
	attached(func(ctx context.Context, conn *client.Conn, root *client.Fid) error {
		f, _, err := root.Walk(ctx, "motd")
		if err != nil {
			return err
		}
		if _, err := f.Open(ctx, p9.ReadOnly); err != nil {
			return err
		}
		_, err = f.CopyFrom(ctx, strings.NewReader("news"), 0, 4)
		fmt.Println(err)
		fmt.Println(conn.Err())
		return nil
	})
	// Output:
	// 9p write: bad file descriptor
	// <nil>
}
