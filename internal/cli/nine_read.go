package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/hugelgupf/p9/p9"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/p9srv/client"
)

// ahead is how many requests cat and write have in flight.
const ahead = 8

func nineCat() nineSub {
	var off int64
	c := &cobra.Command{Use: "cat ADDR PATH...", Short: "print files"}
	c.Flags().Int64Var(&off, "offset", 0, "begin at byte `N` of each file")
	check := func([]string) error {
		if off < 0 {
			return usagef("--offset %d: takes 0 or more", off)
		}
		return nil
	}
	return nineSub{cmd: c, check: check, run: func(n *nine, args []string) error {
		return n.each(args, func(path string) error { return n.cat(path, off) })
	}}
}

func (n *nine) cat(path string, off int64) error {
	f, err := n.openPath(path, p9.ReadOnly)
	if err != nil {
		return err
	}
	defer n.drop(f)
	_, err = f.CopyTo(n.ctx, output{n.a}, off, ahead)
	return err
}

// openPath opens a path that is no folder.
func (n *nine) openPath(path string, flags p9.OpenFlags) (*client.Fid, error) {
	f, err := n.walk(path, true)
	if err != nil {
		return nil, err
	}
	if f.QID().Type&p9.TypeDir != 0 {
		n.drop(f)
		return nil, unix.EISDIR
	}
	if _, err := f.Open(n.ctx, flags); err != nil {
		n.drop(f)
		return nil, err
	}
	return f, nil
}

func nineReadlink() nineSub {
	c := &cobra.Command{Use: "readlink ADDR PATH...", Short: "print what symbolic links say"}
	return nineSub{cmd: c, run: func(n *nine, args []string) error {
		return n.each(args, func(path string) error {
			return n.with(path, false, func(f *client.Fid) error {
				if f.QID().Type&p9.TypeSymlink == 0 {
					return &problem{Thing: path, Err: fmt.Errorf("is no symbolic link")}
				}
				target, err := f.Readlink(n.ctx)
				if err == nil {
					_, err = fmt.Fprintln(output{n.a}, target)
				}
				return err
			})
		})
	}}
}

func nineStat() nineSub {
	var follow, asJSON bool
	c := &cobra.Command{Use: "stat ADDR [PATH...]", Short: "print what is known of files"}
	c.Flags().BoolVarP(&follow, "dereference", "L", false, "follow symbolic links")
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON object for each file")
	return nineSub{cmd: c, run: func(n *nine, args []string) error {
		if len(args) == 0 {
			args = []string{"."}
		}
		return n.each(args, func(path string) error { return n.stat(path, follow, asJSON) })
	}}
}

func (n *nine) stat(path string, follow, asJSON bool) error {
	return n.with(path, follow, func(f *client.Fid) error {
		a, err := n.attrs(f)
		if err != nil {
			return err
		}
		target := ""
		if a.Mode.IsSymlink() {
			if target, err = f.Readlink(n.ctx); err != nil {
				return err
			}
		}
		if asJSON {
			return json.NewEncoder(output{n.a}).Encode(jsonOf(path, &a, target))
		}
		_, err = output{n.a}.Write(n.statText(path, &a, target))
		return err
	})
}

// statText is what stat(1) prints of a file, and below it what 9P knows besides.
func (n *nine) statText(path string, a *attrs, target string) []byte {
	plain := func(s string) string { return s }
	if terminal(n.a.env.Stdout) {
		plain = shown
	}
	var b bytes.Buffer
	var i ids
	name := plain(path)
	if a.Mode.IsSymlink() {
		name += " -> " + plain(target)
	}
	uid, gid := uint32(a.UID), uint32(a.GID)
	fmt.Fprintf(&b, "  File: %s\n", name)
	fmt.Fprintf(&b, "  Size: %-10d\tBlocks: %-10d IO Block: %-6d %s\n", a.Size, a.Blocks, a.BlockSize, typeText(a.Mode, a.Size))
	fmt.Fprintf(&b, " Inode: %-11d Links: %d", a.qid.Path, a.NLink)
	if isDevice(a.Mode) {
		fmt.Fprintf(&b, "     Device type: %d,%d", unix.Major(uint64(a.RDev)), unix.Minor(uint64(a.RDev)))
	}
	fmt.Fprintf(&b, "\nAccess: (%04o/%s)  Uid: (%5d/%8s)   Gid: (%5d/%8s)\n", uint32(a.Mode&0o7777), modeText(a.Mode), uid, i.user(uid), gid, i.group(gid))
	fmt.Fprintf(&b, "Access: %s\n", statTime(a.ATimeSeconds, a.ATimeNanoSeconds))
	fmt.Fprintf(&b, "Modify: %s\n", statTime(a.MTimeSeconds, a.MTimeNanoSeconds))
	fmt.Fprintf(&b, "Change: %s\n", statTime(a.CTimeSeconds, a.CTimeNanoSeconds))
	birth := "-"
	if a.valid.BTime {
		birth = statTime(a.BTimeSeconds, a.BTimeNanoSeconds)
	}
	fmt.Fprintf(&b, " Birth: %s\n", birth)
	fmt.Fprintf(&b, "   QID: %s", qidText(a.qid))
	if a.valid.Gen {
		fmt.Fprintf(&b, "  Generation: %d", a.Gen)
	}
	if a.valid.DataVersion {
		fmt.Fprintf(&b, "  Data version: %d", a.DataVersion)
	}
	b.WriteByte('\n')
	return b.Bytes()
}

func nineStatfs() nineSub {
	var asJSON bool
	c := &cobra.Command{Use: "statfs ADDR [PATH...]", Short: "print what is known of the file system below"}
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON object for each path")
	return nineSub{cmd: c, run: func(n *nine, args []string) error {
		if len(args) == 0 {
			args = []string{"."}
		}
		return n.each(args, func(path string) error {
			return n.with(path, true, func(f *client.Fid) error {
				s, err := f.StatFS(n.ctx)
				if err != nil {
					return err
				}
				if asJSON {
					return json.NewEncoder(output{n.a}).Encode(jsonFS{jsonName(path), fmt.Sprintf("%x", s.Type), s.BlockSize,
						s.Blocks, s.BlocksFree, s.BlocksAvailable, s.Files, s.FilesFree, fmt.Sprintf("%x", s.FSID), s.NameLength})
				}
				_, err = fmt.Fprintf(output{n.a}, "  File: %q\n    ID: %-8x Namelen: %-7d Type: %x\nBlock size: %d\nBlocks: Total: %-10d Free: %-10d Available: %d\nInodes: Total: %-10d Free: %d\n",
					path, s.FSID, s.NameLength, s.Type, s.BlockSize, s.Blocks, s.BlocksFree, s.BlocksAvailable, s.Files, s.FilesFree)
				return err
			})
		})
	}}
}

// jsonFS is a file system in JSON. Sizes are in blocks.
type jsonFS struct {
	Path      jsonName `json:"path"`
	Type      string   `json:"type"`
	BlockSize uint32   `json:"block_size"`
	Blocks    uint64   `json:"blocks"`
	Free      uint64   `json:"blocks_free"`
	Available uint64   `json:"blocks_available"`
	Files     uint64   `json:"files"`
	FilesFree uint64   `json:"files_free"`
	ID        string   `json:"id"`
	NameMax   uint32   `json:"name_max"`
}

func nineVersion() nineSub {
	c := &cobra.Command{Use: "version ADDR", Short: "print what was agreed on with the server"}
	return nineSub{cmd: c, run: func(n *nine, _ []string) error {
		_, err := fmt.Fprintf(output{n.a}, "version: %s\nmsize: %d\nroot: %s\n", n.conn.Version(), n.conn.Msize(), qidText(n.root.QID()))
		return err
	}}
}

func nineXattr() nineSub {
	var set string
	var remove bool
	c := &cobra.Command{Use: "xattr ADDR PATH [NAME]", Short: "list, print, set or remove extended attributes"}
	c.Flags().StringVar(&set, "set", "", "set the attribute to `VALUE`")
	c.Flags().BoolVar(&remove, "remove", false, "remove the attribute")
	check := func(args []string) error {
		change := c.Flags().Changed("set")
		switch {
		case change && remove:
			return usagef("--set and --remove do not go together")
		case (change || remove) && len(args) < 2:
			return usagef("wants the attribute's NAME behind the path")
		}
		return nil
	}
	return nineSub{cmd: c, check: check, run: func(n *nine, args []string) error {
		return n.each(args[:1], func(path string) error {
			return n.with(path, true, func(f *client.Fid) error {
				switch {
				case c.Flags().Changed("set"):
					return f.SetXattr(n.ctx, args[1], []byte(set), 0)
				case remove:
					return f.RemoveXattr(n.ctx, args[1])
				case len(args) == 2:
					v, err := f.GetXattr(n.ctx, args[1])
					if err == nil {
						_, err = output{n.a}.Write(append(v, '\n'))
					}
					return err
				}
				names, err := f.ListXattrs(n.ctx)
				if err == nil && len(names) > 0 {
					_, err = fmt.Fprintln(output{n.a}, strings.Join(names, "\n"))
				}
				return err
			})
		})
	}}
}
