package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mezzofs/mezzo/cachefs"
	"github.com/mezzofs/mezzo/cachefs/fusefs"
	"github.com/mezzofs/mezzo/cachefs/merge"
	"github.com/mezzofs/mezzo/kml/tree"
)

// mountFlags are the flags of mezzo mount.
type mountFlags struct {
	cache      string
	foreground bool
	options    []string
	bwlimit    string
	aging      string
}

func (a *app) mountCommand() *cobra.Command {
	var flags mountFlags
	c := &cobra.Command{
		Use:   "mount ADDR MNT",
		Short: "mount a fileset that a master serves, with a cache",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.mount(cmd.Context(), args[0], args[1], &flags)
		},
	}
	c.Flags().StringVar(&flags.cache, "cache", "", "keep the cache in `DIR`")
	c.Flags().BoolVarP(&flags.foreground, "foreground", "f", false, "stay in the foreground")
	c.Flags().StringVar(&flags.bwlimit, "bwlimit", "", "send and fetch `N` bytes a second at most")
	c.Flags().StringVar(&flags.aging, "aging", "", "send changes when they are as old as `TIME`")
	c.Flags().StringArrayVarP(&flags.options, "options", "o", nil, "mount options `OPT,...`")
	return c
}

// mountOptions are the -o options that mean something here.
type mountOptions struct {
	readOnly   bool
	allowOther bool
	sync       bool
	hard       bool
	cache      string
	bandwidth  int64
	aging      time.Duration
}

// parseMountOptions reads -o OPT,... and passes over what only mount(8), an
// fstab and init systems look at.
func parseMountOptions(lists []string) (mountOptions, error) {
	var o mountOptions
	for _, opt := range strings.Split(strings.Join(lists, ","), ",") {
		name, value, _ := strings.Cut(opt, "=")
		switch name {
		case "", "rw", "defaults", "auto", "noauto", "user", "nouser", "users", "nofail", "_netdev",
			"nosuid", "nodev", "relatime", "noatime", "comment":
		case "sync":
			o.sync = true
		case "async":
			o.sync = false
		case "hard":
			o.hard = true
		case "soft":
			o.hard = false
		case "ro":
			o.readOnly = true
		case "allow_other":
			o.allowOther = true
		case "bwlimit":
			n, err := cachefs.ParseBandwidth(value)
			if err != nil {
				return o, usagef("bwlimit: %v", err)
			}
			o.bandwidth = n
		case "aging":
			d, err := time.ParseDuration(value)
			if err != nil || d < 0 {
				return o, usagef("aging: %q is not a time, as 30s", value)
			}
			o.aging = d
		case "cache":
			if value == "" {
				return o, usagef("-o cache: wants a folder")
			}
			o.cache = value
		default:
			if !strings.HasPrefix(name, "x-") {
				return o, usagef("-o %s: not a mount option of mezzo", name)
			}
		}
	}
	return o, nil
}

func (a *app) mount(ctx context.Context, where, mnt string, flags *mountFlags) error {
	o, err := parseMountOptions(flags.all())
	if err != nil {
		return err
	}
	if flags.cache != "" {
		o.cache = flags.cache
	}
	addr, err := masterAddress(where, a.env.Getenv)
	if err != nil {
		return err
	}
	if err := checkMountPoint(mnt); err != nil {
		return err
	}
	if !flags.foreground {
		return a.background(ctx, a.mountArgs(where, mnt, flags))
	}
	client, dir, err := a.openClient(ctx, addr, mnt, o)
	if err != nil {
		return err
	}
	return errors.Join(a.serveClient(ctx, client, dir, addr, mnt, o), a.closeClient(client))
}

// all is the options, with those that have a flag of their own behind the others.
func (f *mountFlags) all() []string {
	all := slices.Clone(f.options)
	if f.bwlimit != "" {
		all = append(all, "bwlimit="+f.bwlimit)
	}
	if f.aging != "" {
		all = append(all, "aging="+f.aging)
	}
	return all
}

// mountArgs is the command line of the process in the background.
func (a *app) mountArgs(where, mnt string, flags *mountFlags) []string {
	args := []string{"mount", "--foreground"}
	for range a.verbose {
		args = append(args, "--verbose")
	}
	if flags.cache != "" {
		args = append(args, "--cache", flags.cache)
	}
	for _, o := range flags.all() {
		args = append(args, "-o", o)
	}
	return append(args, "--", where, mnt)
}

// masterAddress is the address where stands for: the folder of a fileset for
// its socket, and a socket for itself.
func masterAddress(where string, getenv func(string) string) (address, error) {
	if st, err := os.Stat(where); err == nil && st.IsDir() {
		made, err := isFileset(where)
		if err != nil {
			return address{}, err
		}
		if !made {
			return address{}, &problem{Thing: where, Err: tree.ErrNotFileset}
		}
		dir, err := filepath.Abs(where)
		if err != nil {
			return address{}, err
		}
		path, err := folderSocket(dir, getenv)
		return unixAddress(path), err
	}
	if st, err := os.Stat(where); err == nil && st.Mode()&os.ModeSocket != 0 {
		where = "unix!" + where
	}
	a, err := parseAddress(where)
	if err == nil && a.Net == "unix" && a.Path[0] != '@' {
		a.Path, err = filepath.Abs(a.Path)
	}
	return a, err
}

// serveClient mounts client and serves the mount until ctx ends or somebody
// unmounts it.
func (a *app) serveClient(ctx context.Context, client *cachefs.Client, dir string, addr address, mnt string, o mountOptions) error {
	srv, err := fusefs.Mount(ctx, mnt, client, fusefs.Options{
		Ext: client.Ext(), Door: doorFUSE, Name: addr.String(), AllowOther: os.Geteuid() == 0 || o.allowOther,
		ReadOnly: o.readOnly, Logger: a.log, Debug: a.verbose >= 2,
	})
	if err != nil {
		return mountProblem(mnt, err)
	}
	defer a.onForce(func() { detach(srv.Path()) })()
	if err := a.ready(filepath.Join(dir, stateDir, "mount.log")); err != nil {
		return errors.Join(err, a.unmount(srv))
	}
	gone := make(chan struct{})
	go func() { // ends with srv, which is closed below
		srv.Wait()
		close(gone)
	}()
	select {
	case <-ctx.Done():
	case <-gone:
	}
	return a.unmount(srv)
}

// closePatience is how long a client has to send what it has not sent yet. What
// is left then waits in the cache for the next mount.
const closePatience = 10 * time.Second

func (a *app) closeClient(client *cachefs.Client) error {
	ctx, cancel := context.WithTimeout(context.Background(), closePatience)
	defer cancel()
	return client.Close(ctx)
}

// mergePrograms are the programs of the user's own configuration that join files.
func (a *app) mergePrograms() (merge.Programs, error) {
	path, err := merge.ConfigPath(a.env.Getenv)
	if err != nil {
		return nil, nil // nowhere to look
	}
	return merge.ReadPrograms(path)
}

// openClient opens the cache that o names, or the one that is kept for what
// addr serves, and connects.
func (a *app) openClient(ctx context.Context, addr address, mnt string, o mountOptions) (*cachefs.Client, string, error) {
	programs, err := a.mergePrograms()
	if err != nil {
		return nil, "", err
	}
	open := func(dir string) (*cachefs.Client, error) {
		if inside(mnt, dir) || inside(dir, mnt) {
			return nil, &problem{Thing: dir, Err: fmt.Errorf("holds the mount point %s, or is in it", mnt), Remedy: "keep the cache elsewhere"}
		}
		return cachefs.Open(ctx, cachefs.Options{Dir: dir, Addr: addr.String(), Logger: a.log, Programs: programs, Sync: o.sync, Hard: o.hard, Bandwidth: o.bandwidth, Aging: o.aging})
	}
	if dir := o.cache; dir != "" {
		c, err := open(dir)
		return c, dir, a.clientProblem(addr, dir, err)
	}
	base, err := a.defaultCache(ctx, addr)
	if err != nil {
		return nil, "", err
	}
	// One mount a cache: a further mount of the same fileset has another.
	for n := 1; ; n++ {
		dir := base
		if n > 1 {
			dir = fmt.Sprintf("%s-%d", base, n)
		}
		c, err := open(dir)
		if errors.As(err, new(*tree.LockedError)) && n < maxCaches {
			continue
		}
		return c, dir, a.clientProblem(addr, dir, err)
	}
}

// maxCaches is how many default caches one fileset may have on a machine.
const maxCaches = 64

// clientProblem says why a master cannot be followed.
func (a *app) clientProblem(addr address, dir string, err error) error {
	p := &problem{Thing: addr.String(), Err: err, Code: exitUnreachable}
	switch {
	case err == nil:
		return nil
	case errors.As(err, new(*problem)):
		return err
	case errors.As(err, new(*tree.LockedError)):
		locked := treeProblem(dir, err)
		if lp, ok := locked.(*problem); ok {
			lp.Err = errors.New(strings.Replace(lp.Err.Error(), "fileset is", "cache is", 1))
			lp.Remedy = "unmount what uses it, or name another with --cache"
		}
		return locked
	case errors.As(err, new(*cachefs.UnsentError)):
		return &problem{Thing: dir, Err: err}
	case errors.Is(err, cachefs.ErrNotAllowed), errors.Is(err, cachefs.ErrNotMezzo):
	default:
		return dialProblem(addr, err)
	}
	p.Err = errors.New(strings.TrimPrefix(err.Error(), addr.String()+": "))
	return p
}
