package cli

import (
	"bytes"
	"context"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	homedir "github.com/mitchellh/go-homedir"
)

// defaultCache is the folder of the cache for what addr serves: named by the
// fileset, and by this machine, since a home folder may be shared. Which
// fileset an address stands for is kept, so that a mount can begin without its
// master.
func (a *app) defaultCache(ctx context.Context, addr address) (string, error) {
	root, err := a.cacheRoot()
	if err != nil {
		return "", err
	}
	host, err := os.Hostname()
	if err != nil {
		return "", err
	}
	note := filepath.Join(root, "addresses", url.PathEscape(addr.String()))
	uuid, err := a.filesetAt(ctx, addr)
	if err != nil {
		known, rerr := os.ReadFile(note)
		if rerr != nil || exitCode(err) != exitUnreachable {
			return "", err
		}
		uuid = strings.TrimSpace(string(known))
		a.log.Warn("master cannot be reached; taking its cache as it was", "addr", addr, "err", err)
	} else {
		if err := os.MkdirAll(filepath.Dir(note), 0o700); err != nil {
			return "", err
		}
		if err := renameio.WriteFile(note, []byte(uuid+"\n"), 0o600); err != nil {
			return "", err
		}
	}
	return filepath.Join(root, uuid+"@"+host), nil
}

// cacheRoot is the folder of all caches of this user.
func (a *app) cacheRoot() (string, error) {
	if d := a.env.Getenv("XDG_CACHE_HOME"); d != "" {
		return filepath.Join(d, "mezzo"), nil
	}
	home := a.env.Getenv("HOME")
	if home == "" {
		var err error
		if home, err = homedir.Dir(); err != nil {
			return "", &problem{Err: err, Remedy: "name the cache's folder with --cache"}
		}
	}
	return filepath.Join(home, ".cache", "mezzo"), nil
}

// filesetAt asks the master at addr for the UUID of what it serves.
func (a *app) filesetAt(ctx context.Context, addr address) (string, error) {
	x, err := a.dialExtension(ctx, addr)
	if err != nil {
		return "", err
	}
	defer x.Close()
	var text bytes.Buffer
	if err := readWhole(ctx, x, "status", &text); err != nil {
		if errors.As(err, new(*problem)) {
			return "", err
		}
		return "", &problem{Thing: addr.String(), Err: err, Remedy: "mount it with: " + addr.kernelMount("MNT", maxKernelMsize, false), Code: exitFailed}
	}
	for _, line := range strings.Split(text.String(), "\n") {
		// It becomes a file's name here: nothing but a UUID will do.
		if uuid, ok := strings.CutPrefix(line, "fileset: "); ok && isUUID(uuid) {
			return uuid, nil
		}
	}
	return "", &problem{Thing: addr.String(), Err: errors.New("tells no fileset"), Code: exitFailed}
}

func isUUID(s string) bool {
	return len(s) == 36 && strings.Trim(s, "0123456789abcdef-") == ""
}
