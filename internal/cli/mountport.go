package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// mountPortFlags are the flags of mezzo mount-port.
type mountPortFlags struct {
	foreground bool
	options    []string
}

func (a *app) mountPortCommand() *cobra.Command {
	var flags mountPortFlags
	c := &cobra.Command{
		Use:   "mount-port PORT MNT",
		Short: "in a virtual machine, mount what a virtio-serial port leads to",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.mountPort(cmd.Context(), args[0], args[1], &flags)
		},
	}
	c.Flags().BoolVarP(&flags.foreground, "foreground", "f", false, "stay in the foreground")
	c.Flags().StringArrayVarP(&flags.options, "options", "o", nil, "mount options `OPT,...` of the kernel's 9P client")
	return c
}

func (a *app) mountPort(ctx context.Context, port, mnt string, flags *mountPortFlags) error {
	o, err := parsePortOptions(flags.options)
	if err != nil {
		return err
	}
	if st, err := os.Stat(mnt); err != nil {
		return &problem{Thing: mnt, Err: err}
	} else if !st.IsDir() {
		return &problem{Thing: mnt, Err: syscall.ENOTDIR}
	}
	if mnt, err = filepath.Abs(mnt); err != nil {
		return err
	}
	device, err := findPort(port, "/sys/class/virtio-ports", "/dev")
	if err != nil {
		return &problem{Thing: port, Err: err}
	}
	if !flags.foreground {
		return a.background(ctx, mountPortArgs(device, mnt, a.verbose, flags.options))
	}
	dev, err := os.OpenFile(device, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		p := &problem{Thing: device, Err: err}
		if errors.Is(err, syscall.EBUSY) {
			p.Remedy, p.Code = "a port can be mounted once; has it been?", exitInUse
		}
		return p
	}
	defer dev.Close()
	if err := settle(dev); err != nil {
		return &problem{Thing: device, Err: err, Remedy: "is the port connected to a 9P server?", Code: exitUnreachable}
	}
	return a.servePort(ctx, dev, mnt, o)
}

// mountPortArgs is the command line of the process in the background.
func mountPortArgs(device, mnt string, verbose int, options []string) []string {
	args := []string{"mount-port", "--foreground"}
	for range verbose {
		args = append(args, "--verbose")
	}
	for _, o := range options {
		args = append(args, "-o", o)
	}
	return append(args, "--", device, mnt)
}

// portOptions are mount(2)'s flags and the data for the kernel's 9P client.
type portOptions struct {
	flags uintptr
	data  []string
}

// parsePortOptions sorts -o OPT,... into both.
func parsePortOptions(lists []string) (portOptions, error) {
	var o portOptions
	known := map[string]uintptr{"ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
		"noatime": unix.MS_NOATIME, "relatime": unix.MS_RELATIME, "rw": 0, "defaults": 0, "": 0}
	version, msize := false, false
	for _, opt := range strings.Split(strings.Join(lists, ","), ",") {
		name, _, _ := strings.Cut(opt, "=")
		if f, ok := known[opt]; ok {
			o.flags |= f
			continue
		}
		switch name {
		case "trans", "rfdno", "wfdno", "port":
			return o, usagef("-o %s: the connection is the port's", name)
		case "version":
			version = true
		case "msize":
			msize = true
		}
		o.data = append(o.data, opt)
	}
	if !version {
		o.data = append(o.data, "version=9p2000.L")
	}
	if !msize {
		o.data = append(o.data, "msize=262144")
	}
	return o, nil
}

// findPort is the device of a port, which is named by its path or, as the
// virtual machine's command line has it, by its name.
func findPort(port, class, dev string) (string, error) {
	if strings.Contains(port, "/") {
		return filepath.Abs(port)
	}
	entries, err := os.ReadDir(class)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	var all []string
	for _, e := range entries {
		name, err := os.ReadFile(filepath.Join(class, e.Name(), "name"))
		if err != nil {
			continue // a port without a name
		}
		n := strings.TrimSuffix(string(name), "\n")
		if n == port || e.Name() == port {
			return filepath.Join(dev, e.Name()), nil
		}
		all = append(all, n)
	}
	if len(all) == 0 {
		return "", errors.New("this machine has no virtio-serial ports with names (is the module virtio_console loaded?)")
	}
	return "", fmt.Errorf("no such port: there are %s", strings.Join(all, ", "))
}

// servePort mounts what answers at dev and serves the mount until it is
// unmounted, the host hangs up or ctx ends.
func (a *app) servePort(ctx context.Context, dev *os.File, mnt string, o portOptions) (err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	kernel := os.NewFile(uintptr(fds[1]), "kernel")
	defer kernel.Close()
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		return err
	}
	r := startRelay(dev, os.NewFile(uintptr(fds[0]), "relay"))
	defer r.close()
	data := strings.Join(append(o.data, "trans=fd", fmt.Sprintf("rfdno=%d,wfdno=%d", fds[1], fds[1])), ",")
	mounted := make(chan error, 1)
	go func() { mounted <- unix.Mount("mezzo", mnt, "9p", o.flags, data) }() // ends with the relay at the latest
	select {
	case err = <-mounted:
	case <-ctx.Done():
		r.close()
		if <-mounted != nil {
			return ctx.Err()
		}
	}
	if err != nil {
		return portMountProblem(mnt, err)
	}
	// The kernel holds the socket itself; when it lets go, that is the unmount.
	kernel.Close()
	if err := a.ready(os.DevNull); err != nil {
		return errors.Join(err, unix.Unmount(mnt, unix.MNT_DETACH))
	}
	defer a.onForce(func() { unix.Unmount(mnt, unix.MNT_DETACH) })()
	select {
	case <-r.over:
	case <-ctx.Done():
		if err := unix.Unmount(mnt, 0); err != nil {
			// In use: who uses it gets errors from now on.
			r.close()
			return os.NewSyscallError("umount", unix.Unmount(mnt, unix.MNT_DETACH))
		}
		<-r.over
	}
	if r.hungUp() {
		return errors.Join(&problem{Thing: dev.Name(), Err: errors.New("the host has hung up"), Code: exitUnreachable},
			os.NewSyscallError("umount", unix.Unmount(mnt, unix.MNT_DETACH)))
	}
	return nil
}

func portMountProblem(mnt string, err error) error {
	p := &problem{Thing: mnt, Err: err}
	switch {
	case errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.EPROTONOSUPPORT):
		p.Remedy = "the kernel wants its modules 9p and 9pnet_fd loaded"
	case errors.Is(err, syscall.EPERM):
		p.Remedy = "mounting wants root"
	case errors.Is(err, syscall.EINVAL):
		p.Remedy = "the kernel's log may say which option it does not take"
	}
	return p
}
