package tree

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// Role is what a host is to a fileset.
type Role string

// The roles.
const (
	RoleMaster  Role = "master"
	RoleCache   Role = "cache"
	RoleReplica Role = "replica"
)

// Errors of opening a fileset.
var (
	ErrIsFileset  = errors.New("is a fileset already")
	ErrNotFileset = errors.New("is not a fileset (make it one with: mezzo init)")
	ErrInside     = errors.New("is inside a fileset")
	ErrHolds      = errors.New("belongs to another fileset, and a fileset cannot hold one")
	ErrForeign    = errors.New("has a .mezzo of somebody else's; rename it first")
)

// LockedError is a fileset that another process has open.
type LockedError struct {
	Dir string
	PID int // 0 when it is not known
}

// Error names the folder and its owner.
func (e *LockedError) Error() string {
	return fmt.Sprintf("%s: fileset is already open by pid %d", e.Dir, e.PID)
}

// Fileset is what fileset.json says.
type Fileset struct {
	Version  int        `json:"version"`
	UUID     string     `json:"uuid"`
	Role     Role       `json:"role"`
	Epoch    uint16     `json:"epoch"`
	Upstream string     `json:"upstream,omitempty"`
	Site     kml.SiteID `json:"site"`                // whose oids we mint; 0: not enrolled yet
	NextSite kml.SiteID `json:"next_site,omitempty"` // master: the next to enrol
	// CounterReserved: oid counters below it may be in use. They are handed out
	// in blocks, each saved before its first use.
	CounterReserved uint64 `json:"counter_reserved"`
	Importing       bool   `json:"importing,omitempty"` // Init is not through yet
	// Copying: a replica that has to be compared with its master's snapshot
	// before it can follow.
	Copying bool `json:"copying,omitempty"`
	// Cut: that is so because the master's history was cut; what the master has
	// no longer, or otherwise, may exist nowhere else and is put aside.
	Cut bool `json:"cut,omitempty"`
	// OwnSites are the master's own sites of earlier epochs.
	OwnSites []kml.SiteID `json:"own_sites,omitempty"`
	// Suspect is set from a crash of the machine until the directory has been
	// looked at in full.
	Suspect *Suspect `json:"suspect,omitempty"`
	// RootHandle and Machine tell a fileset that was copied or restored.
	RootHandle string `json:"root_handle"`
	Machine    string `json:"machine"`
	Key        string `json:"key,omitempty"` // a client's session key, hex
}

const (
	filesetVersion = 1
	oidBlock       = 4096
)

// State is the opened state folder .mezzo of a fileset: its identity, and the
// lock that makes it this process's. It may be used by many goroutines.
type State struct {
	dir  string // of the fileset
	lock *os.File

	mu     sync.Mutex
	fs     Fileset
	next   uint64 // next oid counter
	Copied bool   // the folder is not the one, or not on the machine, the state was made for
}

// CreateState makes dir a fileset. fs gives role and numbers; UUID and marks of
// identity are filled in when empty. The folder must exist. A master's that was
// left while importing is started over.
func CreateState(dir string, fs Fileset) (*State, error) {
	if st, err := os.Stat(dir); err != nil {
		return nil, err
	} else if !st.IsDir() {
		return nil, fmt.Errorf("%s: %w", dir, unix.ENOTDIR)
	}
	if up := filesetAbove(dir); up != "" {
		return nil, fmt.Errorf("%s: %w: %s", dir, ErrInside, up)
	}
	meta := filepath.Join(dir, ExtDirName)
	s := &State{dir: dir}
	if err := s.checkFresh(meta); err != nil {
		return nil, err
	}
	if err := os.Mkdir(meta, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	if err := s.takeLock(); err != nil {
		return nil, err
	}
	if err := s.fill(&fs); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.startOver(meta); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := os.WriteFile(filepath.Join(meta, ".gitignore"), []byte("*\n"), 0o600); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.fs = fs
	if err := s.save(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// checkFresh refuses a state folder that is in use or not ours.
func (s *State) checkFresh(meta string) error {
	names, err := os.ReadDir(meta)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", s.dir, ErrForeign)
	}
	old, err := readFileset(meta)
	switch {
	case err == nil && old.Importing:
		return nil
	case err == nil:
		return fmt.Errorf("%s: %w", s.dir, ErrIsFileset)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	for _, n := range names {
		if n.Name() != "lock" && n.Name() != ".gitignore" {
			return fmt.Errorf("%s: %w", s.dir, ErrForeign)
		}
	}
	return nil
}

// startOver empties the state folder of an interrupted import, less the lock.
func (s *State) startOver(meta string) error {
	names, err := os.ReadDir(meta)
	if err != nil {
		return err
	}
	for _, n := range names {
		if n.Name() == "lock" || n.Name() == "fileset.json" {
			continue
		}
		if err := os.RemoveAll(filepath.Join(meta, n.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (s *State) fill(fs *Fileset) error {
	fs.Version = filesetVersion
	if fs.UUID == "" {
		var u [16]byte
		if _, err := rand.Read(u[:]); err != nil {
			return err
		}
		u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
		fs.UUID = fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
	}
	h, err := HandleAt(unix.AT_FDCWD, s.dir)
	if err != nil && fs.Role != RoleCache {
		return fmt.Errorf("%s: the file system gives no file handles, which identity is built on: %w", s.dir, err)
	}
	fs.RootHandle, fs.Machine = base64.StdEncoding.EncodeToString(h), machineID()
	return nil
}

// filesetAbove is the fileset that dir lies in, if any.
func filesetAbove(dir string) string {
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	for up := filepath.Dir(dir); ; up = filepath.Dir(up) {
		if _, err := os.Stat(filepath.Join(up, ExtDirName, "fileset.json")); err == nil {
			return up
		}
		if up == filepath.Dir(up) {
			return ""
		}
	}
}

func machineID() string {
	b, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(b))
}

// OpenState opens the fileset in dir. It is a *LockedError while another
// process has it.
func OpenState(dir string) (*State, error) {
	meta := filepath.Join(dir, ExtDirName)
	if _, err := os.Stat(dir); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(meta, "fileset.json")); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dir, ErrNotFileset)
	}
	s := &State{dir: dir}
	if err := s.takeLock(); err != nil {
		return nil, err
	}
	fset, err := readFileset(meta)
	if err == nil && fset.Importing {
		err = fmt.Errorf("%s: its import did not end: %w", dir, ErrNotFileset)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.fs, s.next = fset, max(fset.CounterReserved, 2)
	h, _ := HandleAt(unix.AT_FDCWD, dir)
	s.Copied = fset.RootHandle != base64.StdEncoding.EncodeToString(h) || fset.Machine != machineID()
	return s, nil
}

func readFileset(meta string) (Fileset, error) {
	var f Fileset
	path := filepath.Join(meta, "fileset.json")
	b, err := os.ReadFile(path)
	if err != nil {
		return f, err
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return f, fmt.Errorf("%s: %w", path, err)
	}
	if f.Version != filesetVersion {
		return f, fmt.Errorf("%s: version %d: %w", path, f.Version, kml.ErrNewer)
	}
	return f, nil
}

// takeLock makes the fileset this process's (flock(2)).
func (s *State) takeLock() error {
	f, err := os.OpenFile(s.Path("lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == unix.EWOULDBLOCK {
		b := make([]byte, 32)
		n, _ := f.ReadAt(b, 0)
		pid, _ := strconv.Atoi(strings.TrimSpace(string(b[:n])))
		f.Close()
		return &LockedError{Dir: s.dir, PID: pid}
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	s.lock = f
	return nil
}

// Fileset is a copy of what fileset.json says.
func (s *State) Fileset() Fileset {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fs
}

// Update changes fileset.json, durably.
func (s *State) Update(f func(*Fileset)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.fs
	f(&s.fs)
	if err := s.save(); err != nil {
		s.fs = old
		return err
	}
	return nil
}

func (s *State) save() error {
	b, err := json.MarshalIndent(s.fs, "", "\t")
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(s.Path("fileset.json"), append(b, '\n'), 0o600); err != nil {
		return err
	}
	return syncDir(s.Path())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// MintOID is a new object's oid: never used before, and never again.
func (s *State) MintOID() (kml.OID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fs.Site == 0 {
		return 0, fmt.Errorf("%s: not enrolled at the master yet: %w", s.dir, unix.EHOSTDOWN)
	}
	s.next = max(s.next, 2)
	if s.next >= s.fs.CounterReserved {
		old := s.fs.CounterReserved
		s.fs.CounterReserved = s.next + oidBlock
		if err := s.save(); err != nil {
			s.fs.CounterReserved = old
			return 0, err
		}
	}
	s.next++
	return kml.MakeOID(s.fs.Site, s.next-1), nil
}

// MintSite is a new site's number.
func (s *State) MintSite() (kml.SiteID, error) {
	var id kml.SiteID
	err := s.Update(func(f *Fileset) {
		id = max(f.NextSite, 2)
		f.NextSite = id + 1
	})
	if err == nil && id >= ownSites {
		err = fmt.Errorf("all %d site numbers of clients are given away", ownSites)
	}
	return id, err
}

// Path is a path in the state folder.
func (s *State) Path(elem ...string) string {
	return filepath.Join(append([]string{s.dir, ExtDirName}, elem...)...)
}

// Close gives the fileset up.
func (s *State) Close() error {
	if s.lock == nil {
		return nil
	}
	// Unlocked by name: a child that is just being started shares the descriptor.
	err := errors.Join(unix.Flock(int(s.lock.Fd()), unix.LOCK_UN), s.lock.Close())
	s.lock = nil
	return err
}

// AboveCounter makes the next oid's counter higher than n: the master has seen
// that one of ours.
func (s *State) AboveCounter(n uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n < s.next {
		return nil
	}
	old := s.fs.CounterReserved
	s.fs.CounterReserved = max(old, n+1)
	if err := s.save(); err != nil {
		s.fs.CounterReserved = old
		return err
	}
	s.next = n + 1
	return nil
}
