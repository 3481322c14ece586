package p9srv_test

import (
	"context"
	"fmt"
	"io"
	"net"

	"github.com/hugelgupf/p9/fsimpl/staticfs"
	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/p9srv"
)

// Serve a tree that was written for hugelgupf/p9, and read from it with that
// library's client.
func Example() {
	if err := serveAndRead(); err != nil {
		fmt.Println(err)
	}
	// Output:
	// hello from 9P
	// served: true
}

func serveAndRead() error {
	tree, err := staticfs.New(staticfs.WithFile("greeting", "hello from 9P\n"))
	if err != nil {
		return err
	}
	l, err := p9srv.Listen(context.Background(), "tcp!127.0.0.1!0")
	if err != nil {
		return err
	}
	srv := p9srv.New(tree, p9srv.Options{})
	done := make(chan error)
	go func() { done <- srv.Serve(context.Background(), l) }()

	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return err
	}
	client, err := p9.NewClient(conn)
	if err != nil {
		return err
	}
	root, err := client.Attach("")
	if err != nil {
		return err
	}
	_, file, err := root.Walk([]string{"greeting"})
	if err != nil {
		return err
	}
	if _, _, err := file.Open(p9.ReadOnly); err != nil {
		return err
	}
	text, err := io.ReadAll(io.NewSectionReader(file, 0, 1<<20))
	if err != nil {
		return err
	}
	fmt.Print(string(text))

	client.Close()
	srv.Close()
	fmt.Println("served:", <-done == nil)
	return nil
}

// perUser has a tree for each user, which says who it is for.
type perUser struct{}

func (perUser) Attach() (p9.File, error) { return nil, fmt.Errorf("no user") }

// AttachAs hands every user a tree of its own.
func (perUser) AttachAs(_ context.Context, u p9srv.User, aname string) (p9.File, error) {
	a, err := staticfs.New(staticfs.WithFile("whoami", fmt.Sprintf("uid %d proven %v asked for %q", u.UID, u.Proven, aname)))
	if err != nil {
		return nil, err
	}
	return a.Attach()
}

// An Attacher that is an AttacherAs is told who attaches.
func ExampleAttacherAs() {
	text, err := whoami("home")
	fmt.Println(text, err)
	// Output:
	// uid 4294967295 proven false asked for "home" <nil>
}

func whoami(aname string) (string, error) {
	mine, theirs := net.Pipe()
	srv := p9srv.New(perUser{}, p9srv.Options{})
	go srv.ServeConn(context.Background(), theirs)
	defer srv.Close()
	client, err := p9.NewClient(mine)
	if err != nil {
		return "", err
	}
	defer client.Close()
	root, err := client.Attach(aname)
	if err != nil {
		return "", err
	}
	_, file, err := root.Walk([]string{"whoami"})
	if err != nil {
		return "", err
	}
	if _, _, err := file.Open(p9.ReadOnly); err != nil {
		return "", err
	}
	text, err := io.ReadAll(io.NewSectionReader(file, 0, 1<<10))
	if err != nil {
		return "", err
	}
	return string(text), nil
}
