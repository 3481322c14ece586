package cli

import (
	"bufio"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hugelgupf/p9/p9"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/p9srv/client"
)

// lsFlags are the flags of mezzo 9p ls.
type lsFlags struct {
	long, all, recursive, folders, numbers, json bool
}

func nineLs() nineSub {
	var f lsFlags
	c := &cobra.Command{Use: "ls ADDR [PATH...]", Short: "list folders and files"}
	fl := c.Flags()
	fl.BoolVarP(&f.long, "long", "l", false, "print types, modes, links, owners, sizes and times too")
	fl.BoolVarP(&f.all, "all", "a", false, "list names that begin with a dot too")
	fl.BoolVarP(&f.recursive, "recursive", "R", false, "list what is in folders too")
	fl.BoolVarP(&f.folders, "directory", "d", false, "list folders themselves, not what is in them")
	fl.BoolVarP(&f.numbers, "numeric", "n", false, "print numbers of users and groups (with --long)")
	fl.BoolVar(&f.json, "json", false, "print a JSON object for each file, names that begin with a dot too")
	return nineSub{cmd: c, run: func(n *nine, args []string) error {
		l := newLister(n, f)
		if len(args) == 0 {
			args = []string{"."}
		}
		err := l.all(args)
		if ferr := l.w.Flush(); err == nil {
			err = ferr
		}
		return err
	}}
}

// lister prints listings.
type lister struct {
	*nine
	f     lsFlags
	w     *bufio.Writer
	ids   ids
	now   time.Time
	label bool // folders are named above their listings
	begun bool // something has been printed
	plain func(string) string
}

func newLister(n *nine, f lsFlags) *lister {
	f.long = f.long || f.numbers
	l := &lister{nine: n, f: f, w: bufio.NewWriter(output{n.a}), now: time.Now(), ids: ids{numbers: f.numbers}}
	l.plain = func(s string) string { return s }
	if terminal(n.a.env.Stdout) {
		l.plain = shown
	}
	return l
}

// entry is a line of a listing.
type entry struct {
	name   string // as it is printed
	path   string
	typ    uint8
	attrs  attrs
	target string
	err    error
}

// all lists files first and then the folders, as ls does.
func (l *lister) all(paths []string) error {
	var files, folders []*entry
	err := l.each(paths, func(path string) error {
		e := &entry{name: path, path: path}
		// A link is listed itself in a long listing, and what it leads to otherwise.
		follow := !l.f.long && !l.f.folders && !l.f.json
		if err := l.with(path, follow, func(f *client.Fid) error { return l.look(f, e) }); err != nil {
			return err
		}
		if e.attrs.Mode.IsDir() && !l.f.folders {
			folders = append(folders, e)
		} else {
			files = append(files, e)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := l.print(files); err != nil {
		return err
	}
	l.label = l.f.recursive || len(files)+len(folders) > 1 || l.failed
	for _, e := range folders {
		if err := l.folder(e.path); err != nil {
			return err
		}
	}
	return nil
}

// look finds out what an entry is.
func (l *lister) look(f *client.Fid, e *entry) (err error) {
	if e.attrs, err = l.attrs(f); err != nil {
		return err
	}
	if e.attrs.Mode.IsSymlink() && (l.f.long || l.f.json) {
		e.target, err = f.Readlink(l.ctx)
	}
	return err
}

// folder lists a folder and, when asked to, those in it. A folder that cannot
// be read is complained of.
func (l *lister) folder(path string) error {
	entries, err := l.read(path)
	if err != nil {
		l.w.Flush() // in order with the complaint; its error comes again
		return l.complain(path, err)
	}
	if l.label && !l.f.json {
		if l.begun {
			fmt.Fprintln(l.w)
		}
		fmt.Fprintf(l.w, "%s:\n", l.plain(path))
	}
	l.begun = true
	if l.f.long && !l.f.json {
		total := uint64(0)
		for _, e := range entries {
			total += e.attrs.Blocks
		}
		fmt.Fprintf(l.w, "total %d\n", (total+1)/2)
	}
	if err := l.print(entries); err != nil {
		return err
	}
	if !l.f.recursive {
		return nil
	}
	for _, e := range entries {
		if e.typ == unix.DT_DIR {
			if err := l.folder(e.path); err != nil {
				return err
			}
		}
	}
	return nil
}

// read reads a folder, sorted by name.
func (l *lister) read(path string) ([]*entry, error) {
	dir, err := l.walk(path, true)
	if err != nil {
		return nil, err
	}
	defer l.drop(dir)
	list, err := l.names(dir)
	if err != nil {
		return nil, err
	}
	var entries []*entry
	for _, d := range list {
		if !l.f.all && !l.f.json && strings.HasPrefix(d.Name, ".") {
			continue
		}
		entries = append(entries, &entry{name: d.Name, path: join(path, d.Name), typ: uint8(d.Type)})
	}
	slices.SortFunc(entries, func(a, b *entry) int { return strings.Compare(a.name, b.name) })
	if l.f.long || l.f.json || l.f.recursive {
		return l.lookAll(dir, entries)
	}
	return entries, nil
}

// names are a folder's entries.
func (n *nine) names(dir *client.Fid) ([]p9.Dirent, error) {
	open, err := dir.Clone(n.ctx)
	if err != nil {
		return nil, err
	}
	defer n.drop(open)
	if _, err := open.Open(n.ctx, p9.ReadOnly); err != nil {
		return nil, err
	}
	var all []p9.Dirent
	for d, err := range open.Entries(n.ctx) {
		if err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	return all, nil
}

// lookers is how many entries are looked at at a time.
const lookers = 16

// lookAll finds out what entries are. One that is gone by then is left out; of
// one that cannot be looked at the name is all there is.
func (l *lister) lookAll(dir *client.Fid, entries []*entry) ([]*entry, error) {
	work := make(chan *entry)
	var wg sync.WaitGroup
	for range min(lookers, len(entries)) {
		wg.Go(func() {
			for e := range work {
				e.err = l.lookIn(dir, e)
			}
		})
	}
	for _, e := range entries {
		work <- e
	}
	close(work)
	wg.Wait()
	kept := entries[:0]
	for _, e := range entries {
		if e.err == nil {
			e.typ = uint8(e.attrs.Mode & p9.FileModeMask >> 12)
			kept = append(kept, e)
			continue
		}
		if err := l.complain(e.path, e.err); err != nil {
			return nil, err
		}
	}
	return kept, nil
}

func (l *lister) lookIn(dir *client.Fid, e *entry) error {
	f, _, err := dir.Walk(l.ctx, e.name)
	if err != nil {
		return err
	}
	defer l.drop(f)
	return l.look(f, e)
}

// join puts a name behind a path.
func join(path, name string) string {
	if strings.HasSuffix(path, "/") {
		return path + name
	}
	return path + "/" + name
}

// print prints lines, in columns when they are long.
func (l *lister) print(entries []*entry) error {
	l.begun = l.begun || len(entries) > 0
	if l.f.json {
		enc := json.NewEncoder(l.w)
		for _, e := range entries {
			if err := enc.Encode(jsonOf(e.path, &e.attrs, e.target)); err != nil {
				return err
			}
		}
		return nil
	}
	if !l.f.long {
		for _, e := range entries {
			fmt.Fprintln(l.w, l.plain(e.name))
		}
		return l.written()
	}
	var rows [][]string
	var width [4]int
	for _, e := range entries {
		a := &e.attrs
		size := fmt.Sprint(a.Size)
		if isDevice(a.Mode) {
			size = fmt.Sprintf("%d, %d", unix.Major(uint64(a.RDev)), unix.Minor(uint64(a.RDev)))
		}
		row := []string{fmt.Sprint(a.NLink), l.ids.user(uint32(a.UID)), l.ids.group(uint32(a.GID)), size}
		for i, s := range row {
			width[i] = max(width[i], len(s))
		}
		rows = append(rows, row)
	}
	for i, e := range entries {
		a, r := &e.attrs, rows[i]
		fmt.Fprintf(l.w, "%s %*s %-*s %-*s %*s %s %s", modeText(a.Mode), width[0], r[0], width[1], r[1], width[2], r[2],
			width[3], r[3], lsTime(timeOf(a.MTimeSeconds, a.MTimeNanoSeconds), l.now), l.plain(e.name))
		if a.Mode.IsSymlink() {
			fmt.Fprintf(l.w, " -> %s", l.plain(e.target))
		}
		fmt.Fprintln(l.w)
	}
	return l.written()
}

// written is the error of what has been printed so far, if any: bufio keeps it.
func (l *lister) written() error {
	_, err := l.w.Write(nil)
	return err
}
