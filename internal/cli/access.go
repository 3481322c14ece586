package cli

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/export"
	"github.com/mezzofs/mezzo/p9srv/plain"
)

// accessFlags say what clients may do: the same for a fileset and for a folder
// without a journal.
type accessFlags struct {
	readOnly  bool
	squash    string
	uid, gid  string
	devices   bool
	noSetUID  bool
	msize     sizeFlag
	maxFIDs   int
	maxReqs   int
	maxBytes  sizeFlag
	isChanged func(flag string) bool
}

func (f *accessFlags) add(c *cobra.Command) {
	fl := c.Flags()
	f.isChanged = fl.Changed
	f.msize, f.maxBytes = sizeFlag{p9srv.DefaultMessageSize}, sizeFlag{p9srv.DefaultMaxBytes}
	fl.BoolVar(&f.readOnly, "ro", false, "refuse all changes")
	fl.StringVar(&f.squash, "squash", "none", "serve `WHO` as somebody else: none, root or all")
	// Only an unknown flag is an error.
	_ = c.RegisterFlagCompletionFunc("squash", cobra.FixedCompletions([]string{"none", "root", "all"}, cobra.ShellCompDirectiveNoFileComp))
	fl.StringVar(&f.uid, "uid", "", "the `USER` whom --squash serves them as, a name or number (default nobody)")
	fl.StringVar(&f.gid, "gid", "", "the `GROUP` whom --squash serves them as (default that of --uid)")
	fl.BoolVar(&f.devices, "devices", false, "let root make device nodes")
	fl.BoolVar(&f.noSetUID, "no-setuid", false, "refuse setuid and setgid files and file capabilities")
	fl.Var(&f.msize, "msize", "grant messages of `SIZE` at most")
	fl.IntVar(&f.maxFIDs, "max-fids", p9srv.DefaultMaxFIDs, "let a connection have `N` fids at most")
	fl.IntVar(&f.maxReqs, "max-requests", p9srv.DefaultMaxRequests, "let a connection have `N` requests in progress at most")
	fl.Var(&f.maxBytes, "max-bytes", "let the requests of a connection take `SIZE` of memory at most")
}

// access is what the flags say, looked up and checked.
type access struct {
	readOnly bool
	squash   export.Squash
	uid, gid uint32
	open     bool // who attaches does not matter: all are served as the process
	devices  bool
	engine   p9srv.Options
}

// fullAccess is that of a command without these flags.
func fullAccess() access {
	return access{engine: p9srv.Options{MaxMessageSize: p9srv.DefaultMessageSize}}
}

// shared says whether more users than this one and root are let in.
func (a access) shared() bool { return os.Geteuid() == 0 || a.open }

// resolve checks the flags together.
func (f *accessFlags) resolve() (access, error) {
	a := access{readOnly: f.readOnly, devices: f.devices}
	a.engine = p9srv.Options{
		MaxMessageSize: int(f.msize.bytes), MaxFIDs: f.maxFIDs, MaxRequests: f.maxReqs, MaxBytes: int(f.maxBytes.bytes),
		NoDevices: !f.devices, NoSetID: f.noSetUID,
	}
	if err := f.checkLimits(); err != nil {
		return a, err
	}
	return a, f.resolveUsers(&a)
}

func (f *accessFlags) checkLimits() error {
	switch {
	case f.msize.bytes < p9srv.MinMessageSize || f.msize.bytes > p9srv.MaxMessageSize:
		return usagef("--msize %s: takes %s to %s", &f.msize, &sizeFlag{p9srv.MinMessageSize}, &sizeFlag{p9srv.MaxMessageSize})
	case f.maxFIDs < 1:
		return usagef("--max-fids %d: takes 1 or more", f.maxFIDs)
	case f.maxReqs < 1:
		return usagef("--max-requests %d: takes 1 or more", f.maxReqs)
	case f.maxBytes.bytes < 2*f.msize.bytes && f.isChanged("max-bytes"):
		return usagef("--max-bytes %s: a request and an answer of --msize %s have to fit: allow %s, or lower --msize",
			&f.maxBytes, &f.msize, &sizeFlag{2 * f.msize.bytes})
	}
	return nil
}

// resolveUsers finds out who is served as whom.
func (f *accessFlags) resolveUsers(a *access) error {
	named := f.uid != "" || f.gid != ""
	how := f.squash
	if named && !f.isChanged("squash") {
		how = "all"
	}
	switch how {
	case "none":
		if named {
			return usagef("--uid and --gid: with --squash none nobody is served as somebody else: say --squash root or all")
		}
		return nil
	case "root":
		a.squash = export.SquashRoot
	case "all":
		a.squash = export.SquashAll
	default:
		return usagef("--squash %s: takes none, root or all", f.squash)
	}
	a.uid, a.gid = export.Nobody, export.Nobody
	if err := f.lookUp(a); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		return nil
	}
	// Another user serves everybody as itself, and nobody else.
	switch {
	case a.squash == export.SquashRoot:
		return &problem{Err: errors.New("--squash root: only root can serve users as themselves"), Remedy: "say --squash all, or run it as root", Code: exitUsage}
	case named && (int(a.uid) != os.Geteuid() || int(a.gid) != os.Getegid()):
		return &problem{Err: fmt.Errorf("--uid %d --gid %d: only root can serve as another user", a.uid, a.gid), Remedy: "leave both out, or run it as root", Code: exitUsage}
	}
	a.open, a.squash = true, export.SquashNone
	return nil
}

// lookUp finds the numbers of --uid and --gid.
func (f *accessFlags) lookUp(a *access) error {
	if f.uid != "" {
		uid, known, err := findUser(f.uid)
		if err != nil {
			return err
		}
		a.uid = uid
		if known != nil {
			gid, err := strconv.ParseUint(known.Gid, 10, 32)
			if err != nil {
				return fmt.Errorf("group %q of user %s: %w", known.Gid, f.uid, err)
			}
			a.gid = uint32(gid)
		} else if f.gid == "" {
			return &problem{Thing: "--uid " + f.uid, Err: errors.New("this machine knows no such user, so no group of it"), Remedy: "say --gid too", Code: exitUsage}
		}
	}
	if f.gid != "" {
		gid, err := findGroup(f.gid)
		if err != nil {
			return err
		}
		a.gid = gid
	}
	if a.uid == 0 {
		return &problem{Thing: "--uid " + f.uid, Err: errors.New("everybody would be root"), Remedy: "name another user", Code: exitUsage}
	}
	return nil
}

// findUser is the number of a user given by name or number, and what the
// machine knows of it, if anything.
func findUser(s string) (uint32, *user.User, error) {
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		if uint32(n) == p9srv.NoID {
			return 0, nil, usagef("--uid %s: is nobody's number", s)
		}
		if u, err := user.LookupId(s); err == nil {
			return uint32(n), u, nil
		}
		return uint32(n), nil, nil
	}
	u, err := user.Lookup(s)
	if err != nil {
		return 0, nil, &problem{Thing: "--uid " + s, Err: errors.New("this machine knows no such user"), Remedy: "give the user's number", Code: exitUsage}
	}
	n, err := strconv.ParseUint(u.Uid, 10, 32)
	return uint32(n), u, err
}

func findGroup(s string) (uint32, error) {
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		if uint32(n) == p9srv.NoID {
			return 0, usagef("--gid %s: is nobody's number", s)
		}
		return uint32(n), nil
	}
	g, err := user.LookupGroup(s)
	if err != nil {
		return 0, &problem{Thing: "--gid " + s, Err: errors.New("this machine knows no such group"), Remedy: "give the group's number", Code: exitUsage}
	}
	n, err := strconv.ParseUint(g.Gid, 10, 32)
	return uint32(n), err
}

// exportOptions are o with what the flags say.
func (a access) exportOptions(o export.Options) export.Options {
	o.ReadOnly, o.Squash, o.SquashUID, o.SquashGID = a.readOnly, a.squash, a.uid, a.gid
	return o
}

// plainOptions is what the flags say.
func (a access) plainOptions() plain.Options {
	return plain.Options{ReadOnly: a.readOnly, Squash: plain.Squash(a.squash), SquashUID: a.uid, SquashGID: a.gid, Devices: a.devices}
}
