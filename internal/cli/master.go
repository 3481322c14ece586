package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/mezzofs/mezzo/kml/tree"
	"github.com/mezzofs/mezzo/p9srv/export"
)

// The front ends of a master, as its tree knows them.
const (
	doorNine tree.Door = 1
	doorFUSE tree.Door = 2
)

// listenFlags are the flags of the commands that listen.
type listenFlags struct {
	listen   []string
	insecure bool
	sync     syncFlag
	retain   retainFlags
}

func (l *listenFlags) addresses() ([]address, error) {
	var all []address
	for _, s := range l.listen {
		a, err := parseAddress(s)
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return all, nil
}

// checkFolder refuses what cannot be a fileset's folder before anything is
// done with it.
func checkFolder(dir string) error {
	st, err := os.Stat(dir)
	if err == nil && !st.IsDir() {
		err = syscall.ENOTDIR
	}
	if err != nil {
		return pathProblem(dir, err)
	}
	return nil
}

// treeProblem says what is wrong with a fileset.
func treeProblem(dir string, err error) error {
	p := &problem{Thing: dir, Err: err}
	var locked *tree.LockedError
	switch {
	case errors.As(err, &locked):
		p.Err, p.Code = errors.New("fileset is already open by another process"), exitInUse
		p.Remedy = "mount it with mezzo mount, or end that process"
		if locked.PID != 0 {
			p.Err = fmt.Errorf("fileset is already open by pid %d", locked.PID)
		}
	case errors.Is(err, tree.ErrIsFileset):
		p.Err, p.Remedy = tree.ErrIsFileset, "serve it with mezzo serve"
	case errors.Is(err, tree.ErrNotFileset):
		p.Err, p.Remedy = errors.New("is not a fileset"), "make it one with mezzo init, or serve it as it is with mezzo serve --no-journal"
	case errors.Is(err, tree.ErrIsReplica):
		p.Err, p.Remedy = tree.ErrIsReplica, "keep it, and serve it, with mezzo replicate"
	case errors.Is(err, tree.ErrNotReplica):
		p.Err, p.Remedy = errors.New("is a fileset of its own, not a replica"), "choose another folder"
	case errors.Is(err, tree.ErrInside):
		p.Remedy = "filesets do not nest: choose another folder"
	case errors.Is(err, tree.ErrForeign):
		p.Err, p.Remedy = errors.New("has a .mezzo that is no fileset's"), "rename that first"
	case errors.Is(err, syscall.EROFS):
		p.Err, p.Remedy = syscall.EROFS, "serve it as it is with mezzo serve --no-journal --ro"
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return pathProblem(dir, err)
	}
	return p
}

// initTree makes dir a fileset and says how many files it took in. A signal
// leaves an import half done; the next one starts over.
func (a *app) initTree(ctx context.Context, dir string) error {
	bar := newProgress(a.env.Stderr, "importing")
	var files int64
	done := make(chan error, 1)
	go func() {
		done <- tree.Init(dir, tree.Options{Logger: a.log, Progress: func(n int64) {
			files = n
			bar.set(n)
		}})
	}()
	select {
	case err := <-done:
		bar.end()
		if err != nil {
			return treeProblem(dir, err)
		}
	case <-ctx.Done():
		bar.end()
		return &problem{Thing: dir, Err: errors.New("import interrupted"), Remedy: "do it again, it starts over"}
	}
	a.out("%s is a fileset, with %s taken in\n", dir, plural(files, "file"))
	return nil
}

// isFileset says whether dir has been made a fileset, as far as one can see.
func isFileset(dir string) (bool, error) {
	_, err := os.Lstat(filepath.Join(dir, stateDir, "fileset.json"))
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	}
	return false, pathProblem(filepath.Join(dir, stateDir), err)
}

// master is a fileset that is open and listens.
type master struct {
	server
	tree    *tree.Tree
	journal *export.Journal
}

// openMaster opens the fileset in dir and its listeners: the socket, and addrs.
func (a *app) openMaster(ctx context.Context, dir string, addrs []address, flags *listenFlags, who access) (m *master, err error) {
	o := tree.Options{Logger: a.log, Sync: flags.sync.mode, SyncEvery: flags.sync.every}
	o.RetainSize, o.RetainAge = flags.retain.policy()
	t, err := tree.Open(dir, o)
	if err != nil {
		return nil, treeProblem(dir, err)
	}
	m = &master{tree: t, server: server{access: who, insecure: flags.insecure}}
	if err := m.listen(ctx, a, addrs, export.JournalOptions{Logger: a.log}); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// listen opens the journal extension of the tree, and the listeners.
func (m *master) listen(ctx context.Context, a *app, addrs []address, j export.JournalOptions) (err error) {
	t, who := m.tree, m.access
	if m.journal, err = export.NewJournal(t, j); err != nil {
		return treeProblem(t.Dir(), err)
	}
	m.attacher = func(trusted bool) attacher {
		o := export.Options{Ext: m.journal, Door: doorNine, InPlace: true, Logger: a.log, TrustClaims: trusted}
		return export.New(m.journal.FS(), who.exportOptions(o))
	}
	path, err := defaultSocket(t.Dir(), t.State().Fileset().UUID, a.env.Getenv)
	if err != nil {
		return err
	}
	// Nobody else has the fileset open: a socket that is there is a dead one.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return pathProblem(path, err)
	}
	m.listeners, err = listenAll(ctx, listening{append([]address{unixAddress(path)}, addrs...), m.insecure, who.shared()})
	return err
}

// Close gives up what openMaster opened: cuts stores, makes all durable. serve
// has ended before.
func (m *master) Close() error {
	return errors.Join(m.closeDoors(), m.tree.Close())
}

// closeDoors gives up what listen opened.
func (m *master) closeDoors() error {
	closeAll(m.listeners)
	if m.journal == nil {
		return nil
	}
	return m.journal.Close()
}

// printMounts tells how others mount what is served.
func (m *master) printMounts(a *app) {
	for _, at := range m.addresses() {
		if m.access.readOnly {
			break // a client with a cache has changes to send
		}
		name := at.Dial()
		if at.Net == "tcp" && at.Host == "" {
			name = fmt.Sprintf("HOST:%d", at.Port)
		}
		a.out("  mezzo mount %s MNT\n", shellQuote(name))
	}
	m.printKernelMounts(a)
}
