package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const tapName = "tap0"

// enterNetwork moves the calling thread into a network namespace of its own
// with a TAP device for the guest's card. The thread must be locked and never
// given back. The namespace, and the device with it, ends with the last
// process and socket in it.
func enterNetwork() (err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	tun, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", tunPath, err)
	}
	defer unix.Close(tun)
	req, err := unix.NewIfreq(tapName)
	if err != nil {
		return err
	}
	// The flags user-mode Linux opens it with (arch/um/drivers/vector_user.c).
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(tun, unix.TUNSETIFF, req); err != nil {
		return fmt.Errorf("%s: TUNSETIFF: %w", tunPath, err)
	}
	if err := unix.IoctlSetInt(tun, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("%s: TUNSETPERSIST: %w", tunPath, err)
	}
	return configureTap()
}

// configureTap gives the device its address and brings it up.
func configureTap() error {
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(sock)
	for _, step := range []struct {
		req  uint
		addr string
	}{{unix.SIOCSIFADDR, hostAddr}, {unix.SIOCSIFNETMASK, netMask}} {
		req, err := unix.NewIfreq(tapName)
		if err != nil {
			return err
		}
		if err := req.SetInet4Addr(net.ParseIP(step.addr).To4()); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(sock, step.req, req); err != nil {
			return fmt.Errorf("%s: address: %w", tapName, err)
		}
	}
	return up(tapName)
}

// up brings a device of the calling thread's network namespace up.
func up(name string) error {
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(sock)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(sock, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("%s: up: %w", name, err)
	}
	return nil
}

// listenHere opens a TCP listener in the calling thread's network namespace.
// It does so by hand: net.Listen keeps to the calling thread too, but makes no
// promise to.
func listenHere(host string, port int) (net.Listener, error) {
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(sock), "listener")
	defer f.Close()
	addr := &unix.SockaddrInet4{Port: port, Addr: [4]byte(net.ParseIP(host).To4())}
	if err := unix.Bind(sock, addr); err != nil {
		return nil, fmt.Errorf("%s:%d: %w", host, port, err)
	}
	if err := unix.Listen(sock, 128); err != nil {
		return nil, fmt.Errorf("%s:%d: %w", host, port, err)
	}
	return net.FileListener(f)
}

// forwarder carries connections from the guest's network to the host's.
type forwarder struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	lns    []net.Listener
}

// newForwarder listens at host in the calling thread's namespace.
func newForwarder(ctx context.Context, host string, ports map[int]string) (*forwarder, error) {
	f := &forwarder{}
	f.ctx, f.cancel = context.WithCancel(ctx)
	for port, addr := range ports {
		network, address, err := splitAddr(addr)
		if err != nil {
			f.close()
			return nil, err
		}
		ln, err := listenHere(host, port)
		if err != nil {
			f.close()
			return nil, err
		}
		f.lns = append(f.lns, ln)
		f.wg.Go(func() { f.accept(ln, network, address) })
	}
	return f, nil
}

func splitAddr(addr string) (network, address string, err error) {
	kind, rest, _ := strings.Cut(addr, "!")
	switch kind {
	case "unix":
		return "unix", rest, nil
	case "tcp":
		host, port, ok := strings.Cut(rest, "!")
		if _, err := strconv.ParseUint(port, 10, 16); ok && err == nil {
			return "tcp", net.JoinHostPort(host, port), nil
		}
	}
	return "", "", fmt.Errorf("%q: not unix!PATH or tcp!HOST!PORT", addr)
}

func (f *forwarder) accept(ln net.Listener, network, address string) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return // closed
		}
		f.wg.Go(func() { f.carry(conn, network, address) })
	}
}

// carry joins a connection of the guest to the server until either ends. An
// end of one side's stream is passed on as that.
func (f *forwarder) carry(in net.Conn, network, address string) {
	defer in.Close()
	var d net.Dialer
	out, err := d.DialContext(f.ctx, network, address)
	if err != nil {
		return // the guest sees its connection close
	}
	defer out.Close()
	stop := context.AfterFunc(f.ctx, func() { in.Close(); out.Close() })
	defer stop()
	var both sync.WaitGroup
	pipe := func(dst, src net.Conn) {
		_, err := io.Copy(dst, src)
		half, ok := dst.(interface{ CloseWrite() error })
		if err != nil || !ok || half.CloseWrite() != nil {
			in.Close()
			out.Close()
		}
	}
	both.Go(func() { pipe(out, in) })
	both.Go(func() { pipe(in, out) })
	both.Wait()
}

func (f *forwarder) close() error {
	f.cancel()
	var err error
	for _, ln := range f.lns {
		err = errors.Join(err, ln.Close())
	}
	f.wg.Wait()
	return err
}
