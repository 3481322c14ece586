package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/hugelgupf/p9/p9"
	"github.com/spf13/cobra"

	"github.com/mezzofs/mezzo/kml/tree"
	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/client"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// nineFlags are those of every command of mezzo 9p.
type nineFlags struct {
	aname string
	user  string
	msize sizeFlag
	trace bool

	dialect string
}

func (a *app) nineCommand() *cobra.Command {
	flags := nineFlags{msize: sizeFlag{p9srv.DefaultMessageSize}}
	c := &cobra.Command{
		Use:   "9p COMMAND",
		Short: "speak 9P to any server: ls, cat, write, stat, ...",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("%q is not a command of mezzo 9p", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	pf := c.PersistentFlags()
	pf.StringVar(&flags.aname, "aname", "", "attach to the server's tree `NAME`")
	pf.StringVar(&flags.user, "user", "", "attach as `USER`, a name or number (default who runs it)")
	pf.Var(&flags.msize, "msize", "ask for messages of `SIZE`")
	pf.StringVar(&flags.dialect, "dialect", "", "speak `VERSION`: 9P2000.L, 9P2000.u or 9P2000 (default the first of these that the server knows)")
	pf.BoolVar(&flags.trace, "trace", false, "print every message to standard error")
	for _, sub := range a.nineCommands() {
		sub.cmd.Args = wantsSome(sub.cmd.Use)
		sub.cmd.DisableFlagsInUseLine = true
		sub.cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if sub.check != nil {
				if err := sub.check(args[1:]); err != nil {
					return err
				}
			}
			return a.nine(cmd, &flags, args, sub.run)
		}
		c.AddCommand(sub.cmd)
	}
	return c
}

// nineSub is a command of mezzo 9p: what it does with the arguments behind ADDR.
type nineSub struct {
	cmd   *cobra.Command
	check func(args []string) error // nil: nothing is wrong with any; before it connects
	run   func(n *nine, args []string) error
}

func (a *app) nineCommands() []nineSub {
	return []nineSub{
		nineLs(), nineCat(), nineStat(), nineStatfs(), nineReadlink(), nineVersion(),
		nineWrite(), nineCreate(), nineMkdir(), nineMknod(), nineLn(), nineMv(), nineRm(), nineRmdir(),
		nineChmod(), nineChown(), nineTouch(), nineTruncate(), nineXattr(),
	}
}

// wantsSome is wants, where the last word may end in "..." and be given several
// times.
func wantsSome(use string) cobra.PositionalArgs {
	words := strings.Fields(use)[1:]
	last := words[len(words)-1]
	if !strings.HasSuffix(strings.TrimSuffix(last, "]"), "...") {
		return wants(use)
	}
	least := 0
	for _, w := range words {
		if !strings.HasPrefix(w, "[") {
			least++
		}
	}
	return func(_ *cobra.Command, args []string) error {
		if len(args) < least {
			return usagef("takes %s or more, not %d", plural(int64(least), "argument"), len(args))
		}
		return nil
	}
}

// nine is one run of a command of mezzo 9p.
type nine struct {
	a      *app
	ctx    context.Context
	addr   address
	conn   *client.Conn
	root   *client.Fid
	path   string // the command, for complaints
	failed bool
}

// nine connects, runs a command and ends with its code.
func (a *app) nine(cmd *cobra.Command, flags *nineFlags, args []string, run func(*nine, []string) error) error {
	n := &nine{a: a, ctx: cmd.Context(), path: cmd.CommandPath()}
	if err := n.attach(flags, args[0]); err != nil {
		return err
	}
	defer n.conn.Close()
	err := run(n, args[1:])
	if gone := n.conn.Err(); gone != nil && err != nil {
		return nineDialProblem(n.addr, gone)
	}
	if err == nil && n.failed {
		err = errSilent{exitFailed}
	}
	return err
}

// attach connects to the server that where stands for.
func (n *nine) attach(flags *nineFlags, where string) (err error) {
	n.addr, err = masterAddress(where, n.a.env.Getenv)
	if errors.Is(err, tree.ErrNotFileset) {
		return &problem{Thing: where, Err: errors.New("is a folder and no fileset"), Remedy: "name the address at which it is served", Code: exitUsage}
	}
	if err != nil {
		return err
	}
	if s := flags.msize.bytes; s < p9srv.MinMessageSize || s > client.MaxMsize {
		return usagef("--msize %s: takes %s to %s", &flags.msize, &sizeFlag{p9srv.MinMessageSize}, &sizeFlag{client.MaxMsize})
	}
	versions := []string{wire.Version9P2000L, wire.Version9P2000U, wire.Version9P2000}
	if flags.dialect != "" {
		if !slices.Contains(versions, flags.dialect) {
			return usagef("--dialect %s: takes 9P2000.L, 9P2000.u or 9P2000", flags.dialect)
		}
		versions = []string{flags.dialect}
	}
	uid, uname := p9.UID(os.Geteuid()), strconv.Itoa(os.Geteuid())
	if flags.user != "" {
		uid, uname = p9.NoUID, flags.user
		if id, err := strconv.ParseUint(flags.user, 10, 32); err == nil {
			uid = p9.UID(id)
		}
	}
	ctx, cancel := context.WithTimeout(n.ctx, dialTimeout)
	defer cancel()
	o := client.Options{Msize: uint32(flags.msize.bytes), Versions: versions}
	if flags.trace || n.a.verbose >= 2 {
		o.Trace = n.trace
	}
	if n.conn, err = client.Dial(ctx, n.addr.String(), o); err != nil {
		return nineDialProblem(n.addr, err)
	}
	if n.root, err = n.conn.Attach(ctx, uname, uid, flags.aname); err != nil {
		n.conn.Close()
		return nineAttachProblem(n.addr, flags, uname, err)
	}
	return nil
}

// trace prints a message. The two directions come from two goroutines; a line
// is one write.
func (n *nine) trace(sent bool, frame []byte) {
	arrow := "<-"
	if sent {
		arrow = "->"
	}
	tag, m, err := wire.Unmarshal(frame)
	if err != nil {
		fmt.Fprintf(n.a.env.Stderr, "%s tag %d %v\n", arrow, tag, err)
		return
	}
	fmt.Fprintf(n.a.env.Stderr, "%s %s\n", arrow, wire.Text(tag, m))
}

// nineDialProblem says why a 9P server cannot be talked to.
func nineDialProblem(addr address, err error) error {
	var p *problem
	if !errors.As(dialProblem(addr, err), &p) {
		return err
	}
	switch {
	case errors.Is(err, client.ErrNot9P):
		p.Remedy = "is that the address of a 9P server?"
	case errors.As(err, new(*client.VersionError)):
		p.Remedy = ""
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		p.Remedy = "is a 9P server running there?"
	}
	return p
}

// nineAttachProblem says why a server does not let this user in.
func nineAttachProblem(addr address, flags *nineFlags, uname string, err error) error {
	var refused *client.Error
	if !errors.As(err, &refused) {
		return nineDialProblem(addr, err)
	}
	p := &problem{Thing: addr.String(), Err: fmt.Errorf("does not let user %s attach to %q: %w", uname, flags.aname, refused.Errno)}
	switch {
	case errors.Is(refused, fs.ErrPermission):
		p.Remedy = "attach as another user with --user, or run it as one"
	case errors.Is(refused, fs.ErrNotExist):
		p.Remedy = "name a tree that it serves with --aname"
	}
	return p
}

// each does f for each path; one that fails is complained of, and the others
// are done all the same.
func (n *nine) each(paths []string, f func(path string) error) error {
	for _, p := range paths {
		if err := f(p); err != nil {
			if fatal := n.complain(p, err); fatal != nil {
				return fatal
			}
		}
	}
	return nil
}

// complain says what is wrong with path. What nothing can follow, it returns.
func (n *nine) complain(path string, err error) error {
	if n.conn.Err() != nil || n.ctx.Err() != nil {
		return err
	}
	var out *outputError
	if errors.As(err, &out) {
		return err
	}
	n.failed = true
	fmt.Fprintf(n.a.env.Stderr, "%s: %s\n", n.path, plainError(n.pathProblem(path, err)))
	return nil
}

// outputError is a failure of standard output: there is no use in going on.
type outputError struct{ err error }

func (e *outputError) Error() string { return "standard output: " + e.err.Error() }
func (e *outputError) Unwrap() error { return e.err }

// output is standard output, whose errors are outputErrors.
type output struct{ a *app }

func (o output) Write(p []byte) (int, error) {
	n, err := o.a.env.Stdout.Write(p)
	if err != nil {
		err = &outputError{err}
	}
	return n, err
}

// pathProblem is an error about a path of the server's: the server's reason
// in the words of this system.
func (n *nine) pathProblem(path string, err error) error {
	var done *problem
	if errors.As(err, &done) {
		return err
	}
	p := &problem{Thing: path, Err: err}
	var refused *client.Error
	if errors.As(err, &refused) {
		p.Err = errors.New(refused.Reason())
		switch refused.Errno {
		case syscall.EOPNOTSUPP, syscall.ENOSYS:
			p.Err = fmt.Errorf("the server does not do %s", refused.Op)
			if v := n.conn.Version(); v != wire.Version9P2000L {
				p.Err = fmt.Errorf("%s cannot do %s", v, refused.Op)
			}
		case syscall.ENODATA:
			p.Err = fmt.Errorf("has no attribute %s", refused.Name)
		}
	}
	return p
}

// splitPath is the names of a path. Slashes at its ends and between count as
// one.
func splitPath(path string) []string {
	var names []string
	for name := range strings.SplitSeq(path, "/") {
		if name != "" && name != "." {
			names = append(names, name)
		}
	}
	return names
}

// maxLinks is how many symbolic links a path may lead through, as in Linux.
const maxLinks = 40

// walk is a fid for a path. A server does not follow symbolic links: those on
// the way, and with follow the last one, are followed here, as if the attached
// tree was all there is. So ".." is taken back here, too: not every server knows
// it.
func (n *nine) walk(path string, follow bool) (*client.Fid, error) {
	names := splitPath(path)
	follow = follow || strings.HasSuffix(path, "/")
	for links := 0; links <= maxLinks; {
		up := slices.Index(names, "..")
		way := names
		if up >= 0 {
			way = names[:up]
		}
		f, qids, err := n.root.Walk(n.ctx, way...)
		if err != nil && len(qids) == 0 {
			qids = n.passed(way)
		}
		if at := linkIn(qids, len(way), follow || up >= 0); at >= 0 {
			links++
			if err == nil {
				n.drop(f)
			}
			target, err := n.readlink(names[:at+1])
			if err != nil {
				return nil, err
			}
			var to []string
			if !strings.HasPrefix(target, "/") {
				to = names[:at]
			}
			names = slices.Concat(to, splitPath(target), names[at+1:])
			continue
		}
		if err != nil || up < 0 {
			return f, err
		}
		folder := f.QID().Type&p9.TypeDir != 0
		n.drop(f)
		if !folder {
			return nil, syscall.ENOTDIR
		}
		names = slices.Concat(names[:max(up-1, 0)], names[up+1:])
	}
	return nil, syscall.ELOOP
}

// passed are the objects that a walk comes through before it fails, one by one:
// some servers answer a walk that fails halfway with nothing but the error.
func (n *nine) passed(names []string) []p9.QID {
	var all []p9.QID
	at := n.root
	for _, name := range names {
		f, qids, err := at.Walk(n.ctx, name)
		if at != n.root {
			n.drop(at)
		}
		if err != nil {
			return all
		}
		at, all = f, append(all, qids...)
	}
	if at != n.root {
		n.drop(at)
	}
	return all
}

// linkIn is the first of the objects a walk came through that is a symbolic
// link to be followed, or -1.
func linkIn(qids []p9.QID, names int, follow bool) int {
	for i, q := range qids {
		if q.Type&p9.TypeSymlink != 0 && (follow || i < names-1) {
			return i
		}
	}
	return -1
}

func (n *nine) readlink(names []string) (string, error) {
	f, _, err := n.root.Walk(n.ctx, names...)
	if err != nil {
		return "", err
	}
	defer n.drop(f)
	return f.Readlink(n.ctx)
}

// drop gives up a fid of which nothing is expected any more.
func (n *nine) drop(f *client.Fid) {
	_ = f.Clunk(context.WithoutCancel(n.ctx)) // it was not written to
}

// parent is a fid for the folder a path's last name is in, and that name.
func (n *nine) parent(path string) (*client.Fid, string, error) {
	names := splitPath(path)
	if len(names) == 0 || names[len(names)-1] == ".." {
		return nil, "", &problem{Thing: path, Err: errors.New("has no name in a folder"), Remedy: "name what is in it"}
	}
	last := len(names) - 1
	dir, err := n.walk(strings.Join(names[:last], "/"), true)
	return dir, names[last], err
}

// inParent runs f with the folder that a path's last name is in.
func (n *nine) inParent(path string, f func(dir *client.Fid, name string) error) error {
	dir, name, err := n.parent(path)
	if err != nil {
		return err
	}
	defer n.drop(dir)
	return f(dir, name)
}

// with runs f with a fid for a path.
func (n *nine) with(path string, follow bool, f func(*client.Fid) error) error {
	fid, err := n.walk(path, follow)
	if err != nil {
		return err
	}
	defer n.drop(fid)
	return f(fid)
}

// attrs are a file's attributes.
type attrs struct {
	qid   p9.QID
	valid p9.AttrMask
	p9.Attr
}

func (n *nine) attrs(f *client.Fid) (a attrs, err error) {
	a.qid, a.valid, a.Attr, err = f.GetAttr(n.ctx, p9.AttrMaskAll)
	return a, err
}

// isDir says whether a path is a folder; false also when there is nothing.
func (n *nine) isDir(path string) bool {
	f, err := n.walk(path, true)
	if err != nil {
		return false
	}
	defer n.drop(f)
	return f.QID().Type&p9.TypeDir != 0
}
