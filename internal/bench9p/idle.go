package bench9p

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"text/tabwriter"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/p9srv/wire"
)

// crowd is connections that do nothing, and fids on each.
type crowd struct{ conns, fids int }

// weight is what a crowd costs a server's process, in bytes of resident memory.
type weight struct{ conn, fid float64 }

const (
	idleRoom  = 64 << 10 // of the generator's buffer for a connection without large answers
	firstIdle = 2000     // number of its first fid
)

// weigh connects a crowd to a server. Every connection attaches and gets an
// attribute; then it is weighed, gets its fids, and the server is weighed again.
func (k crowd) weigh(s *server, network string) (w weight, err error) {
	none, err := s.resident()
	if err != nil {
		return w, err
	}
	var l lines
	defer func() {
		for _, c := range l {
			err = errors.Join(err, c.close())
		}
	}()
	ask := &wire.Tgetattr{FID: fidRoot, Mask: p9.AttrMaskAll}
	for i := range k.conns {
		c, err := dial(network, s.addrs[network], s.aname, i, 16, idleRoom)
		if err == nil {
			l = append(l, c)
			err = c.call(ask, nil)
		}
		if err != nil {
			return w, fmt.Errorf("connection %d: %w", i+1, err)
		}
	}
	idle, err := s.resident()
	if err != nil {
		return w, err
	}
	err = k.each(l, "fids", func(fid wire.FID) wire.Msg { return &wire.Twalk{FID: fidRoot, NewFID: fid} })
	if err != nil {
		return w, err
	}
	full, err := s.resident()
	if err != nil {
		return w, err
	}
	// All of them are there.
	if err := k.each(l, "last fids", func(fid wire.FID) wire.Msg { return &wire.Tclunk{FID: fid} }); err != nil {
		return w, err
	}
	for i, c := range l {
		if err := c.call(&wire.Tclunk{FID: fidRoot}, nil); err != nil {
			return w, fmt.Errorf("root of connection %d: %w", i+1, err)
		}
	}
	return weight{float64(idle-none) / float64(k.conns), float64(full-idle) / float64(k.conns*k.fids)}, nil
}

// each sends a message for each of the fids of each connection.
func (k crowd) each(l []*conn, what string, m func(wire.FID) wire.Msg) error {
	for i, c := range l {
		next := wire.FID(firstIdle)
		err := c.run(k.fids, func(s *slot, answer []byte) (bool, error) {
			if answer == nil {
				s.send(m(next))
				next++
			}
			return answer == nil, nil
		})
		if err != nil {
			return fmt.Errorf("%s of connection %d: %w", what, i+1, err)
		}
	}
	return nil
}

// resident is the memory of the server's process that is not files.
func (s *server) resident() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		rest, ok := bytes.CutPrefix(sc.Bytes(), []byte("RssAnon:"))
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(string(bytes.TrimSpace(bytes.TrimSuffix(rest, []byte("kB")))), 10, 64)
		return n << 10, err
	}
	return 0, fmt.Errorf("%s: no RssAnon in its status", s.kind)
}

// allowFiles lets a server and this process have descriptors for a crowd.
func (s *server) allowFiles() error {
	var have unix.Rlimit
	if err := unix.Prlimit(s.cmd.Process.Pid, unix.RLIMIT_NOFILE, nil, &have); err != nil {
		return fmt.Errorf("%s: %w", s.kind, err)
	}
	have.Cur = have.Max
	return unix.Prlimit(s.cmd.Process.Pid, unix.RLIMIT_NOFILE, &have, nil)
}

// measure weighs each server once and prints a table. One that cannot take the
// crowd is told about there.
func (k crowd) measure(h *host, network string, out io.Writer) error {
	tw := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "%s, %d idle, %d fids each\tKiB/connection\tbytes/fid\t\n", network, k.conns, k.fids)
	for _, s := range h.servers {
		if err := s.allowFiles(); err != nil {
			return err
		}
		w, err := k.weigh(s, network)
		if err != nil {
			fmt.Fprintf(tw, "%s\t%v\t\t\n", s.kind, err)
			continue
		}
		fmt.Fprintf(tw, "%s\t%.1f\t%.0f\t\n", s.kind, w.conn/(1<<10), w.fid)
	}
	fmt.Fprintln(tw)
	return tw.Flush()
}
