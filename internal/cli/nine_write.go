package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hugelgupf/p9/p9"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/p9srv/client"
)

// umask is the umask of this process, which the kernel tells in proc(5)'s
// status without the change that umask(2) makes.
func umask() p9.FileMode {
	const usual = 0o022
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return usual
	}
	_, rest, _ := strings.Cut(string(text), "\nUmask:")
	line, _, _ := strings.Cut(rest, "\n")
	m, err := strconv.ParseUint(strings.TrimSpace(line), 8, 32)
	if err != nil {
		return usual
	}
	return p9.FileMode(m)
}

// writeFlags are the flags of mezzo 9p write.
type writeFlags struct {
	append, exclusive, sync bool
	offset                  int64
	mode                    *modeFlag
}

func nineWrite() nineSub {
	var f writeFlags
	c := &cobra.Command{Use: "write ADDR PATH", Short: "write standard input to a file, which is made or emptied first"}
	fl := c.Flags()
	fl.BoolVar(&f.append, "append", false, "write behind what is there")
	fl.BoolVar(&f.exclusive, "exclusive", false, "make the file; it is an error if it is there")
	fl.BoolVar(&f.sync, "sync", false, "wait until it is on the server's disk")
	fl.Int64Var(&f.offset, "offset", 0, "write from byte `N` on into what is there")
	f.mode = addMode(c, 0o666)
	check := func([]string) error {
		over := fl.Changed("offset")
		switch {
		case f.append && over, f.append && f.exclusive, f.exclusive && over:
			return usagef("of --append, --exclusive and --offset one can be given")
		case f.offset < 0:
			return usagef("--offset %d: takes 0 or more", f.offset)
		}
		return nil
	}
	return nineSub{cmd: c, check: check, run: func(n *nine, args []string) error {
		return n.each(args, func(path string) error { return n.write(path, &f, fl.Changed("offset")) })
	}}
}

// write fills a file from standard input: one that is there, or a new one.
func (n *nine) write(path string, f *writeFlags, over bool) error {
	fill := func(fid *client.Fid) error {
		inFlight := ahead
		if f.append {
			inFlight = 1
		}
		if _, err := fid.CopyFrom(n.ctx, n.a.env.Stdin, f.offset, inFlight); err != nil {
			return err
		}
		if f.sync {
			return fid.FSync(n.ctx, false)
		}
		return nil
	}
	flags := p9.WriteOnly
	switch {
	case f.append:
		flags |= unix.O_APPEND
	case !over:
		flags |= unix.O_TRUNC
	}
	if !f.exclusive {
		fid, err := n.openPath(path, flags)
		if err == nil {
			return n.finish(fid, fill(fid))
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return n.inParent(path, func(dir *client.Fid, name string) error {
		return n.create(dir, name, flags&^unix.O_TRUNC|openCreate, f.mode.mode, fill)
	})
}

func nineTruncate() nineSub {
	var size sizeFlag
	c := &cobra.Command{Use: "truncate ADDR PATH...", Short: "cut files, or make them longer"}
	c.Flags().VarP(&size, "size", "s", "the new `SIZE`")
	check := func([]string) error {
		if !c.Flags().Changed("size") {
			return usagef("wants --size")
		}
		return nil
	}
	return nineSub{cmd: c, check: check, run: func(n *nine, args []string) error {
		return n.setAttr(args, p9.SetAttrMask{Size: true}, p9.SetAttr{Size: uint64(size.bytes)})
	}}
}

// setAttr sets the same attributes of several files.
func (n *nine) setAttr(paths []string, valid p9.SetAttrMask, attr p9.SetAttr) error {
	return n.each(paths, func(path string) error {
		return n.with(path, true, func(f *client.Fid) error { return f.SetAttr(n.ctx, valid, attr) })
	})
}

func nineTouch() nineSub {
	var date string
	c := &cobra.Command{Use: "touch ADDR PATH...", Short: "set times to now, and make files that are not there"}
	c.Flags().StringVarP(&date, "date", "d", "", "set them to `TIME`, such as 2026-11-21T12:00:00Z or a number of seconds")
	mode := addMode(c, 0o666)
	attr, valid := p9.SetAttr{}, p9.SetAttrMask{ATime: true, MTime: true}
	check := func([]string) error {
		if date == "" {
			return nil
		}
		t, err := parseTime(date)
		if err != nil {
			return usagef("--date %s: is no time, such as 2026-11-21T12:00:00Z or @1795262400", date)
		}
		valid.ATimeNotSystemTime, valid.MTimeNotSystemTime = true, true
		attr.ATimeSeconds, attr.ATimeNanoSeconds = uint64(t.Unix()), uint64(t.Nanosecond())
		attr.MTimeSeconds, attr.MTimeNanoSeconds = attr.ATimeSeconds, attr.ATimeNanoSeconds
		return nil
	}
	return nineSub{cmd: c, check: check, run: func(n *nine, args []string) error {
		return n.each(args, func(path string) error {
			set := func(f *client.Fid) error { return f.SetAttr(n.ctx, valid, attr) }
			err := n.with(path, true, set)
			if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return n.inParent(path, func(dir *client.Fid, name string) error {
				return n.create(dir, name, openCreate|p9.WriteOnly, mode.mode, func(f *client.Fid) error {
					if date == "" {
						return nil
					}
					return set(f)
				})
			})
		})
	}}
}

func parseTime(s string) (time.Time, error) {
	if n, err := strconv.ParseInt(strings.TrimPrefix(s, "@"), 10, 64); err == nil {
		return time.Unix(n, 0), nil
	}
	return time.Parse(time.RFC3339Nano, s)
}

func nineChmod() nineSub {
	c := &cobra.Command{Use: "chmod ADDR MODE PATH...", Short: "set permissions, in octal or like u+w,go-rwx"}
	var change func(p9.FileMode, bool) p9.FileMode
	check := func(args []string) (err error) {
		change, err = parseMode(args[0])
		return err
	}
	return nineSub{cmd: c, check: check, run: func(n *nine, args []string) error {
		return n.each(args[1:], func(path string) error {
			return n.with(path, true, func(f *client.Fid) error {
				a, err := n.attrs(f)
				if err != nil {
					return err
				}
				mode := change(a.Mode&0o7777, a.Mode.IsDir())
				return f.SetAttr(n.ctx, p9.SetAttrMask{Permissions: true}, p9.SetAttr{Permissions: mode})
			})
		})
	}}
}

// parseMode reads a mode as chmod(1) does: a number, or changes such as u+w. The
// result is the new mode of what has a mode, and may be a folder.
func parseMode(s string) (func(old p9.FileMode, folder bool) p9.FileMode, error) {
	var number modeFlag
	if number.Set(s) == nil {
		return func(p9.FileMode, bool) p9.FileMode { return number.mode }, nil
	}
	type change struct {
		who, bits p9.FileMode
		op        byte
		x         bool // X: to be executed by who may do so already
	}
	var all []change
	for part := range strings.SplitSeq(s, ",") {
		i := strings.IndexAny(part, "+-=")
		if i < 0 {
			return nil, usagef("%q is no mode, such as 644 or u+w,go-rwx", s)
		}
		k := change{op: part[i]}
		for _, w := range part[:i] {
			bits, ok := map[rune]p9.FileMode{'u': 0o4700, 'g': 0o2070, 'o': 0o1007, 'a': 0o7777}[w]
			if !ok {
				return nil, usagef("%q is no mode, such as 644 or u+w,go-rwx", s)
			}
			k.who |= bits
		}
		if i == 0 {
			k.who = 0o7777 &^ umask()
		}
		for _, b := range part[i+1:] {
			bits, ok := map[rune]p9.FileMode{'r': 0o444, 'w': 0o222, 'x': 0o111, 'X': 0, 's': 0o6000, 't': 0o1000}[b]
			if !ok {
				return nil, usagef("%q is no mode, such as 644 or u+w,go-rwx", s)
			}
			k.bits |= bits
			k.x = k.x || b == 'X'
			if b == 't' {
				k.who |= 0o1000
			}
		}
		all = append(all, k)
	}
	return func(m p9.FileMode, folder bool) p9.FileMode {
		for _, k := range all {
			bits := k.bits
			if k.x && (folder || m&0o111 != 0) {
				bits |= 0o111
			}
			switch k.op {
			case '+':
				m |= bits & k.who
			case '-':
				m &^= bits & k.who
			default:
				m = m&^(k.who&0o777) | bits&k.who
			}
		}
		return m
	}, nil
}

func nineChown() nineSub {
	c := &cobra.Command{Use: "chown ADDR OWNER PATH...", Short: "set the owner, given as USER, USER:GROUP or :GROUP"}
	var no bool
	c.Flags().BoolVarP(&no, "no-dereference", "P", false, "change symbolic links themselves")
	var valid p9.SetAttrMask
	attr := p9.SetAttr{UID: p9.NoUID, GID: p9.NoGID}
	check := func(args []string) error {
		who, group, both := strings.Cut(args[0], ":")
		if who == "" && group == "" {
			return usagef("%q names neither a user nor a group", args[0])
		}
		if who != "" {
			uid, _, err := findUser(who)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			valid.UID, attr.UID = true, p9.UID(uid)
		}
		if both && group != "" {
			gid, err := findGroup(group)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			valid.GID, attr.GID = true, p9.GID(gid)
		}
		return nil
	}
	return nineSub{cmd: c, check: check, run: func(n *nine, args []string) error {
		return n.each(args[1:], func(path string) error {
			return n.with(path, !no, func(f *client.Fid) error { return f.SetAttr(n.ctx, valid, attr) })
		})
	}}
}
