package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// stateDir is the name of the state folder of a fileset, and of the journal
// extension in a served tree and in mounts.
const stateDir = ".mezzo"

// place is what WHERE on a command line stands for. One field is set.
type place struct {
	folder string  // the root of a fileset's own folder
	mount  string  // the root of a mount of a fileset
	addr   address // of a master
}

func (p place) String() string {
	switch {
	case p.folder != "":
		return p.folder
	case p.mount != "":
		return p.mount
	}
	return p.addr.String()
}

// locate finds what where stands for: the address of a master, or a path in a
// fileset's folder or in a mount of one. Empty is the current folder.
func locate(where string) (place, error) {
	if where == "" {
		where = "."
	}
	if strings.Contains(where, "!") {
		a, err := parseAddress(where)
		return place{addr: a}, err
	}
	st, err := os.Stat(where)
	if err != nil {
		if a, aerr := parseAddress(where); aerr == nil && a.Net == "tcp" {
			return place{addr: a}, nil
		}
		return place{}, pathProblem(where, err)
	}
	if st.Mode()&os.ModeSocket != 0 {
		return place{addr: unixAddress(where)}, nil
	}
	abs, err := filepath.Abs(where)
	if err != nil {
		return place{}, err
	}
	return climb(where, abs)
}

// climb looks for the root of a fileset or mount at abs and above.
func climb(where, abs string) (place, error) {
	for dir := abs; ; dir = filepath.Dir(dir) {
		state := filepath.Join(dir, stateDir)
		_, err := os.Lstat(filepath.Join(state, "fileset.json"))
		if err == nil {
			return place{folder: dir}, nil
		}
		if errors.Is(err, fs.ErrPermission) {
			return place{}, pathProblem(state, err)
		}
		if _, err := os.Lstat(filepath.Join(state, "status")); err == nil {
			return place{mount: dir}, nil
		}
		if dir == "/" {
			return place{}, &problem{Thing: where, Err: errors.New("is neither a fileset nor a mount of one"),
				Remedy: "name one, or make it one with mezzo init"}
		}
	}
}

// extension is the journal extension of a fileset, however it is reached.
type extension interface {
	// open opens a file of it, to read or, with write, to read and write.
	open(ctx context.Context, name string, write bool) (extensionFile, error)
	Close() error
}

// extensionFile is one open file of an extension, from its beginning on: a
// request is written before the first read. A Read returns what there is, and
// waits where there is nothing yet; at the end it gives io.EOF.
type extensionFile = io.ReadWriteCloser

// mountedExtension is the one in a mount.
type mountedExtension struct{ dir string }

func (m mountedExtension) open(_ context.Context, name string, write bool) (extensionFile, error) {
	flags := os.O_RDONLY
	if write {
		flags = os.O_RDWR
	}
	return os.OpenFile(filepath.Join(m.dir, stateDir, name), flags, 0)
}

func (mountedExtension) Close() error { return nil }

// connect reaches the extension of a place. For a folder that nobody serves it
// is nil, without an error.
func (a *app) connect(ctx context.Context, p place) (extension, error) {
	switch {
	case p.mount != "":
		return mountedExtension{p.mount}, nil
	case p.folder == "":
		return a.dialExtension(ctx, p.addr)
	}
	sock, err := folderSocket(p.folder, a.env.Getenv)
	if err != nil {
		return nil, err
	}
	x, err := a.dialExtension(ctx, unixAddress(sock))
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, nil
	}
	return x, err
}

// stateText is what a file of the extension at where says. While nobody serves
// the folder there, idle says it.
func (a *app) stateText(ctx context.Context, where, name string, idle func(*bytes.Buffer, place) error) ([]byte, error) {
	p, err := locate(where)
	if err != nil {
		return nil, err
	}
	x, err := a.connect(ctx, p)
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	if x == nil {
		err = idle(&text, p)
	} else {
		defer x.Close()
		err = readWhole(ctx, x, name, &text)
	}
	switch {
	case errors.As(err, new(*problem)):
		return nil, err
	case err != nil:
		return nil, commandProblem(p, err)
	}
	return text.Bytes(), nil
}

// readWhole reads a file of an extension to its end.
func readWhole(ctx context.Context, x extension, name string, w io.Writer) error {
	f, err := x.open(ctx, name, false)
	if errors.As(err, new(*problem)) {
		return err
	}
	if err != nil {
		return fmt.Errorf("%s/%s: %w", stateDir, name, err)
	}
	defer f.Close()
	if _, err := io.Copy(w, f); err != nil {
		return fmt.Errorf("%s/%s: %w", stateDir, name, err)
	}
	return nil
}
