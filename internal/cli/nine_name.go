package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"syscall"

	"github.com/hugelgupf/p9/p9"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/p9srv/client"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// modeFlag is --mode: permissions in octal.
type modeFlag struct{ mode p9.FileMode }

// String is the flag as it is given.
func (f *modeFlag) String() string { return fmt.Sprintf("%04o", uint32(f.mode)) }

// Set parses the flag.
func (f *modeFlag) Set(s string) error {
	m, err := strconv.ParseUint(s, 8, 32)
	if err != nil || m > 0o7777 {
		return fmt.Errorf("%q is no mode, such as 644 or 1777", s)
	}
	f.mode = p9.FileMode(m)
	return nil
}

// Type names the value in a usage text.
func (f *modeFlag) Type() string { return "mode" }

// addMode gives c the flag --mode. Without it what is made has mode less what
// the umask takes.
func addMode(c *cobra.Command, mode p9.FileMode) *modeFlag {
	f := &modeFlag{mode &^ umask()}
	c.Flags().VarP(f, "mode", "m", "permissions of what is made, in octal")
	c.Flag("mode").DefValue = fmt.Sprintf("%04o less the umask", uint32(mode))
	return f
}

// openCreate are the flags of a Tlcreate that want a new file.
const openCreate = p9.OpenFlags(unix.O_CREAT | unix.O_EXCL)

func nineCreate() nineSub {
	c := &cobra.Command{Use: "create ADDR PATH...", Short: "make empty files"}
	mode := addMode(c, 0o666)
	return nineSub{cmd: c, run: func(n *nine, args []string) error {
		return n.each(args, func(path string) error {
			return n.inParent(path, func(dir *client.Fid, name string) error {
				return n.create(dir, name, openCreate|p9.WriteOnly, mode.mode, func(f *client.Fid) error { return nil })
			})
		})
	}}
}

// create makes a file, calls f with it open, and closes it: what closing says
// counts, too.
func (n *nine) create(dir *client.Fid, name string, flags p9.OpenFlags, mode p9.FileMode, f func(*client.Fid) error) error {
	fid, err := dir.Clone(n.ctx)
	if err != nil {
		return err
	}
	if _, err := fid.Create(n.ctx, name, flags, mode, p9.NoGID); err != nil {
		n.drop(fid)
		return err
	}
	return n.finish(fid, f(fid))
}

// finish closes what was written to.
func (n *nine) finish(f *client.Fid, err error) error {
	if cerr := f.Clunk(context.WithoutCancel(n.ctx)); err == nil {
		err = cerr
	}
	return err
}

func nineMkdir() nineSub {
	var parents bool
	c := &cobra.Command{Use: "mkdir ADDR PATH...", Short: "make folders"}
	c.Flags().BoolVarP(&parents, "parents", "p", false, "make folders above too; it is no error if the folder is there")
	mode := addMode(c, 0o777)
	return nineSub{cmd: c, run: func(n *nine, args []string) error {
		return n.each(args, func(path string) error {
			if parents {
				return n.mkdirAll(path, mode.mode)
			}
			return n.inParent(path, func(dir *client.Fid, name string) error {
				_, err := dir.Mkdir(n.ctx, name, mode.mode, p9.NoGID)
				return err
			})
		})
	}}
}

func (n *nine) mkdirAll(path string, mode p9.FileMode) error {
	names := splitPath(path)
	for i := range names {
		part, m := strings.Join(names[:i+1], "/"), p9.FileMode(0o777)&^umask()
		if i == len(names)-1 {
			m = mode
		}
		if names[i] == ".." || n.isDir(part) {
			continue
		}
		err := n.inParent(part, func(dir *client.Fid, name string) error {
			_, err := dir.Mkdir(n.ctx, name, m, p9.NoGID)
			return err
		})
		// Somebody else may have made it meanwhile.
		if err != nil && !(errors.Is(err, fs.ErrExist) && n.isDir(part)) {
			return err
		}
	}
	return nil
}

func nineMknod() nineSub {
	c := &cobra.Command{Use: "mknod ADDR PATH TYPE [MAJOR] [MINOR]", Short: "make a FIFO (p), socket (s) or device (b, c)"}
	mode := addMode(c, 0o666)
	var node client.Node
	check := func(args []string) error {
		types := map[string]uint32{"p": unix.S_IFIFO, "s": unix.S_IFSOCK, "b": unix.S_IFBLK, "c": unix.S_IFCHR}
		typ, ok := types[args[1]]
		device := typ == unix.S_IFBLK || typ == unix.S_IFCHR
		switch {
		case !ok:
			return usagef("%q: takes p, s, b or c", args[1])
		case device != (len(args) == 4):
			return usagef("b and c take MAJOR and MINOR, p and s do not")
		}
		node.Mode = p9.FileMode(typ) | mode.mode
		for i, to := range []*uint32{&node.Major, &node.Minor} {
			if !device {
				break
			}
			v, err := strconv.ParseUint(args[2+i], 0, 32)
			if err != nil {
				return usagef("%q is no device number", args[2+i])
			}
			*to = uint32(v)
		}
		return nil
	}
	return nineSub{cmd: c, check: check, run: func(n *nine, args []string) error {
		return n.each(args[:1], func(path string) error {
			return n.inParent(path, func(dir *client.Fid, name string) error {
				node.Name, node.GID = name, p9.NoGID
				_, err := dir.Mknod(n.ctx, node)
				return err
			})
		})
	}}
}

func nineLn() nineSub {
	var symbolic bool
	c := &cobra.Command{Use: "ln ADDR TARGET PATH", Short: "give a file one more name, or make a symbolic link"}
	c.Flags().BoolVarP(&symbolic, "symbolic", "s", false, "make a symbolic link that says TARGET")
	return nineSub{cmd: c, run: func(n *nine, args []string) error {
		return n.each(args[1:], func(path string) error {
			return n.inParent(n.into(path, args[0]), func(dir *client.Fid, name string) error {
				if symbolic {
					_, err := dir.Symlink(n.ctx, name, args[0], p9.NoGID)
					return err
				}
				target, err := n.walk(args[0], false)
				if err != nil {
					return n.pathProblem(args[0], err)
				}
				defer n.drop(target)
				return dir.Link(n.ctx, target, name)
			})
		})
	}}
}

// into is a path, or if that is a folder the name of what there is in it.
func (n *nine) into(path, what string) string {
	names := splitPath(what)
	if len(names) > 0 && n.isDir(path) {
		return join(path, names[len(names)-1])
	}
	return path
}

func nineMv() nineSub {
	c := &cobra.Command{Use: "mv ADDR OLD NEW", Short: "move a file or folder"}
	return nineSub{cmd: c, run: func(n *nine, args []string) error {
		return n.each(args[:1], func(old string) error {
			return n.inParent(old, func(from *client.Fid, oldName string) error {
				to, newName, err := n.parent(n.into(args[1], old))
				if err != nil {
					return n.pathProblem(args[1], err)
				}
				defer n.drop(to)
				return from.RenameAt(n.ctx, oldName, to, newName)
			})
		})
	}}
}

func nineRmdir() nineSub {
	c := &cobra.Command{Use: "rmdir ADDR PATH...", Short: "remove empty folders"}
	return nineSub{cmd: c, run: func(n *nine, args []string) error {
		return n.each(args, func(path string) error {
			return n.inParent(path, func(dir *client.Fid, name string) error {
				return dir.UnlinkAt(n.ctx, name, wire.UnlinkRemoveDir)
			})
		})
	}}
}

// rmFlags are the flags of mezzo 9p rm.
type rmFlags struct{ recursive, force bool }

func nineRm() nineSub {
	var f rmFlags
	c := &cobra.Command{Use: "rm ADDR PATH...", Short: "remove files"}
	c.Flags().BoolVarP(&f.recursive, "recursive", "r", false, "remove folders and what is in them too")
	c.Flags().BoolVarP(&f.force, "force", "f", false, "it is no error if nothing is there")
	return nineSub{cmd: c, run: func(n *nine, args []string) error {
		return n.each(args, func(path string) error {
			err := n.inParent(path, func(dir *client.Fid, name string) error { return n.remove(dir, path, name, &f) })
			if f.force && errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		})
	}}
}

// remove removes what dir has under a name. What a folder holds is complained
// of by itself.
func (n *nine) remove(dir *client.Fid, path, name string, flags *rmFlags) error {
	f, _, err := dir.Walk(n.ctx, name)
	if err != nil {
		return err
	}
	folder := f.QID().Type&p9.TypeDir != 0
	if !folder {
		n.drop(f)
		return dir.UnlinkAt(n.ctx, name, 0)
	}
	defer n.drop(f)
	if !flags.recursive {
		return &problem{Thing: path, Err: syscall.EISDIR, Remedy: "remove it with --recursive, or an empty one with rmdir"}
	}
	entries, err := n.names(f)
	if err != nil {
		return err
	}
	for _, e := range entries {
		child := join(path, e.Name)
		err := n.remove(f, child, e.Name, flags)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := n.complain(child, err); err != nil {
			return err
		}
	}
	return dir.UnlinkAt(n.ctx, name, wire.UnlinkRemoveDir)
}
