package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/cachefs/fusefs"
)

func (a *app) upCommand() *cobra.Command {
	var flags listenFlags
	c := &cobra.Command{
		Use:   "up DIR MNT",
		Short: "serve a folder and mount its tree, in one go",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.up(cmd.Context(), args[0], args[1], &flags)
		},
	}
	flags.add(c)
	c.Flag("listen").Usage = "listen at `ADDR` instead of a free loopback port; may be given several times"
	return c
}

func (a *app) up(ctx context.Context, dir, mnt string, flags *listenFlags) (err error) {
	addrs, err := flags.addresses()
	if err != nil {
		return err
	}
	if len(addrs) == 0 {
		addrs = []address{loopbackPort()}
	}
	if err := checkFolder(dir); err != nil {
		return err
	}
	if err := checkMountPoint(mnt, dir); err != nil {
		return err
	}
	made, err := isFileset(dir)
	if err != nil {
		return err
	}
	if !made {
		if err := a.initTree(ctx, dir); err != nil {
			return err
		}
	}
	m, err := a.openMaster(ctx, dir, addrs, flags, fullAccess())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	srv, err := fusefs.Mount(ctx, mnt, m.journal.FS(), fusefs.Options{
		Ext: m.journal, Door: doorFUSE, Name: m.tree.Dir(), AllowOther: os.Geteuid() == 0, Logger: a.log, Debug: a.verbose >= 2,
	})
	if err != nil {
		return mountProblem(mnt, err)
	}
	defer a.onForce(func() { detach(srv.Path()) })()
	a.out("%s is mounted at %s; others mount it with one of\n", shellQuote(dir), shellQuote(mnt))
	m.printMounts(a)
	err = m.serveUntilUnmounted(ctx, a, srv)
	// Streams of the journal extension that are read through the mount end
	// first: they would hold it.
	return errors.Join(err, m.journal.Close(), a.unmount(srv))
}

// serveUntilUnmounted serves until ctx ends or the mount is gone.
func (m *master) serveUntilUnmounted(ctx context.Context, a *app, srv *fusefs.Server) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with srv, which the caller closes
		srv.Wait()
		cancel()
	}()
	return m.serve(ctx, a)
}

// unmountPatience is how long an unmount may take before it is a lazy one.
const unmountPatience = 5 * time.Second

// unmount ends a mount; that it was in use is said aloud and is no failure.
func (a *app) unmount(srv *fusefs.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), unmountPatience)
	defer cancel()
	err := srv.Close(ctx)
	var busy *fusefs.BusyError
	if errors.As(err, &busy) {
		fmt.Fprintf(a.env.Stderr, "mezzo: %v\n", busy)
		return nil
	}
	return err
}

// detach takes a mount out of the tree without waiting for anything.
func detach(path string) {
	if unix.Unmount(path, unix.MNT_DETACH) != nil {
		exec.Command("fusermount3", "-u", "-z", path).Run() // the process ends now: nobody is left to tell
	}
}

// checkMountPoint refuses what cannot be mounted on before anything is done,
// and a mount point in one of the folders it would show, or the other way
// round.
func checkMountPoint(mnt string, apart ...string) error {
	for _, dir := range apart {
		if inside(mnt, dir) || inside(dir, mnt) {
			return &problem{Thing: mnt, Err: fmt.Errorf("is in %s, or holds it", dir), Remedy: "mount elsewhere"}
		}
	}
	if err := fusefs.CheckMountPoint(mnt); err != nil {
		return mountProblem(mnt, err)
	}
	return nil
}

// inside says whether path is dir or below it, symbolic links resolved. What
// does not exist yet is taken as it is written.
func inside(path, dir string) bool {
	real := func(p string) string {
		if abs, err := filepath.Abs(p); err == nil {
			p = abs
		}
		if r, err := filepath.EvalSymlinks(p); err == nil {
			p = r
		}
		return p
	}
	rel, err := filepath.Rel(real(dir), real(path))
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// mountProblem says why a mount cannot be made.
func mountProblem(mnt string, err error) error {
	p := &problem{Thing: mnt, Err: err}
	for _, known := range []error{fusefs.ErrNoDevice, fusefs.ErrNoHelper, fusefs.ErrMounted, fusefs.ErrNotEmpty, fusefs.ErrNotDir} {
		if errors.Is(err, known) {
			p.Err = known // it names the remedy, and the thing has been named
			if known == fusefs.ErrMounted || known == fusefs.ErrNotEmpty {
				p.Code = exitInUse
			}
			return p
		}
	}
	if errors.Is(err, os.ErrNotExist) {
		return pathProblem(mnt, os.ErrNotExist)
	}
	if text, ok := strings.CutPrefix(err.Error(), mnt+": "); ok {
		p.Err = errors.New(text)
	}
	if strings.Contains(err.Error(), "/dev/fuse: Permission denied") {
		p.Err, p.Remedy = errors.New("this user may not use /dev/fuse"), "let it (chmod 666 /dev/fuse), or run it as root; mezzo serve does without"
	}
	if errors.Is(err, syscall.EPERM) {
		p.Remedy = "mounting wants root, or fusermount3 and a folder of one's own"
	}
	return p
}
