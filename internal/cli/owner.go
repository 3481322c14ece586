package cli

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// socketOwner is the user whose socket the other end of a connection within
// this machine is: peer is that end's address, own is this one's. The kernel
// tells it in proc(5)'s net/tcp; ok is false when no such socket is there, as
// for a peer on another machine, or when its owner has closed it.
func socketOwner(peer, own netip.AddrPort) (uid uint32, ok bool, err error) {
	for _, file := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		f, err := os.Open(file)
		if os.IsNotExist(err) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return 0, false, err
		}
		uid, ok, err = findOwner(f, peer, own)
		f.Close()
		if err != nil || ok {
			return uid, ok, err
		}
	}
	return 0, false, nil
}

// tcpEstablished is the state of a connection that neither end has closed
// (include/net/tcp_states.h of the kernel), as it is printed.
const tcpEstablished = "01"

// findOwner looks the connection from peer to own up in a table of sockets. Both
// ends count: one port may have connections of several users.
func findOwner(r io.Reader, peer, own netip.AddrPort) (uid uint32, ok bool, err error) {
	s := bufio.NewScanner(r)
	s.Scan() // the heading
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) < 10 {
			continue
		}
		local, err := parseProcAddr(f[1])
		if err != nil {
			return 0, false, err
		}
		remote, err := parseProcAddr(f[2])
		if err != nil {
			return 0, false, err
		}
		if local != unmapped(peer) || remote != unmapped(own) {
			continue
		}
		// What its owner has closed lingers on as root's, and what it sent before
		// is still to be read.
		if open := f[3] == tcpEstablished && f[9] != "0"; !open {
			return 0, false, nil
		}
		n, err := strconv.ParseUint(f[7], 10, 32)
		if err != nil {
			return 0, false, fmt.Errorf("net/tcp: %w", err)
		}
		return uint32(n), true, nil
	}
	return 0, false, s.Err()
}

// parseProcAddr reads ADDRESS:PORT in hex, where the address is printed as
// numbers of four bytes in the machine's order.
func parseProcAddr(s string) (netip.AddrPort, error) {
	bad := fmt.Errorf("net/tcp: %q is no address", s)
	a, p, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(a)
	if err != nil {
		return netip.AddrPort{}, bad
	}
	for i := 0; i+4 <= len(b) && nativeLittle(); i += 4 {
		b[i], b[i+1], b[i+2], b[i+3] = b[i+3], b[i+2], b[i+1], b[i]
	}
	addr, ok := netip.AddrFromSlice(b)
	port, err := strconv.ParseUint(p, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, bad
	}
	return unmapped(netip.AddrPortFrom(addr, uint16(port))), nil
}

// unmapped is a without IPv6 around an IPv4 address.
func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func nativeLittle() bool { return binary.NativeEndian.Uint16([]byte{1, 0}) == 1 }
