package cli

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"github.com/mezzofs/mezzo/p9srv/wire"
)

// address is where a master listens or is reached.
type address struct{ wire.Addr }

func unixAddress(path string) address { return address{wire.Addr{Net: "unix", Path: path}} }

// parseAddress reads the forms of wire.ParseAddr.
func parseAddress(s string) (address, error) {
	a, err := wire.ParseAddr(s)
	if err != nil {
		text := strings.TrimPrefix(err.Error(), fmt.Sprintf("%q: ", s))
		text, _, _ = strings.Cut(text, ": want unix!PATH") // the remedy says it
		return address{}, &problem{Thing: s, Err: errors.New(text), Remedy: "an address is unix!PATH, tcp!HOST!PORT, a path that begins with / or ./, or HOST:PORT", Code: exitUsage}
	}
	return address{a}, nil
}

// loopback says whether only this machine reaches a. A name counts when all
// its addresses do.
func (a address) loopback() bool {
	if a.Net == "unix" {
		return true
	}
	if ip := net.ParseIP(a.Host); ip != nil {
		return ip.IsLoopback()
	}
	if a.Host == "" {
		return false
	}
	ips, err := net.LookupIP(a.Host)
	for _, ip := range ips {
		if !ip.IsLoopback() {
			return false
		}
	}
	return err == nil && len(ips) > 0
}

// addressOf is the address a listener got, its path absolute.
func addressOf(l net.Addr) address {
	a, ok := wire.AddrOf(l)
	if !ok {
		return address{}
	}
	if a.Net == "unix" && a.Path[0] != '@' {
		if abs, err := filepath.Abs(a.Path); err == nil {
			a.Path = abs
		}
	}
	return address{a}
}

// kernelMount is the line with which the kernel's own client mounts a at mnt.
func (a address) kernelMount(mnt string, msize int, readOnly bool) string {
	common := fmt.Sprintf("version=9p2000.L,msize=%d,access=user", min(msize, maxKernelMsize))
	if readOnly {
		common += ",ro"
	}
	if a.Net == "unix" {
		return fmt.Sprintf("mount -t 9p -o trans=unix,%s %s %s", common, shellQuote(a.Path), shellQuote(mnt))
	}
	host := a.Host
	if host == "" {
		host = "HOST"
	}
	return fmt.Sprintf("mount -t 9p -o trans=tcp,port=%d,%s %s %s", a.Port, common, host, shellQuote(mnt))
}

// maxKernelMsize is the largest message Linux's client has over a socket
// (MAX_SOCK_BUF of net/9p/trans_fd.c).
const maxKernelMsize = 1 << 20

// shellQuote makes s one word of a shell.
func shellQuote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+,:@%=", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
