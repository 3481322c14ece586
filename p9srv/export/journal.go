package export

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// JournalOptions tune a Journal. The zero value works.
type JournalOptions struct {
	// Access lists who besides the serving user and root has more rights than
	// to read.
	Access []Grant
	// Heartbeat is after how long a feed that has nothing else to say says that
	// it lives; 0 is 2 s.
	Heartbeat time.Duration
	// Idle is how long a reader may leave a snapshot that it began waiting,
	// which holds an old state of the index; 0 is 1 min.
	Idle time.Duration
	// StageQuota bounds the bytes of all uploads together; 0 is 4 GiB.
	StageQuota int64
	// Above is the master of a replica's tree: what clients write goes there. nil
	// for a master's own tree.
	Above Above
	// Lease is how long a client that is not heard of keeps what it was promised;
	// 0 is 5 s.
	Lease time.Duration
	// Status adds lines to the status file; nil adds none.
	Status func(line func(key string, value any))
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Logger takes sessions and refusals; nil is slog.Default().
	Logger *slog.Logger
}

func (o *JournalOptions) fill() {
	if o.Heartbeat <= 0 {
		o.Heartbeat = 2 * time.Second
	}
	if o.Idle <= 0 {
		o.Idle = time.Minute
	}
	if o.StageQuota <= 0 {
		o.StageQuota = 4 << 30
	}
	if o.Lease <= 0 {
		o.Lease = leaseLength
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
}

// Journal is a master's journal extension, the folder .mezzo that its front
// ends show: the log, the feed and the doors for clients' changes. It is a
// tree.Ext; its methods may be called at the same time.
type Journal struct {
	t   *tree.Tree
	o   JournalOptions
	log *slog.Logger
	uid uint32 // who serves

	text    *textLog
	stage   *stage
	mending mending
	clients clients
	leases  *leases

	// smu guards sites, the session of each site that may apply records, and the
	// beginning of goroutines against the end of all.
	smu   sync.Mutex
	sites map[kml.SiteID]*reintSession

	started time.Time
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	wg      sync.WaitGroup // goroutines of snapshot and reint sessions
	closing sync.Once
}

// NewJournal makes the journal extension of t. Close it before t.
func NewJournal(t *tree.Tree, o JournalOptions) (*Journal, error) {
	o.fill()
	j := &Journal{t: t, o: o, log: o.Logger, uid: uint32(os.Geteuid()), sites: make(map[kml.SiteID]*reintSession), started: o.Now()}
	// Streams outlive the call that opens them: they end with Close.
	j.ctx, j.cancel = context.WithCancel(context.Background())
	j.leases = newLeases(t, o.Lease)
	j.text = &textLog{log: t.Log(), path: t.State().Path("log.txt")}
	var err error
	if j.stage, err = openStage(t.Stage(), o.StageQuota); err != nil {
		j.cancel()
		return nil, err
	}
	if err := dropMends(t.Stage()); err != nil {
		j.cancel()
		return nil, err
	}
	return j, nil
}

// Close ends all streams and sessions: readers get a failure frame and the end.
// It waits for what is being applied. It may be called twice.
func (j *Journal) Close() error {
	var err error
	j.closing.Do(func() {
		j.smu.Lock()
		j.cancel()
		j.smu.Unlock()
		j.wg.Wait()
		err = j.text.close()
	})
	return err
}

// run runs f in a goroutine that Close waits for; false when it is too late.
func (j *Journal) run(f func()) bool {
	j.smu.Lock()
	defer j.smu.Unlock()
	if j.ctx.Err() != nil {
		return false
	}
	j.wg.Go(f)
	return true
}

// Numbers of the entries: parts of inode numbers, so they never change. 11 is kept
// for conflicts.
const (
	idKML = 1 + iota
	idLog
	idFeed
	idSnapshot
	idReint
	idStage
	idOID
	idStatus
	idClients
	idPermit

	idPolicy  = 12
	idCtl     = 13
	idDamaged = 14
	idMend    = 15
	idChunks  = 16
	idDigest  = 17

	idMends    = uint64(1) << 40 // and half a hash of the oid
	idUploads  = uint64(1) << 41 // and a hash of site and seq
	idVersions = uint64(1) << 42 // and a hash of the oid
	idTrees    = idUploads | idVersions
)

// hashID spreads a number over the low 41 bits.
func hashID(v uint64) uint64 {
	v = (v ^ v>>31) * 0x9E3779B97F4A7C15
	return (v ^ v>>29) * 0xBF58476D1CE4E5B9 >> 23
}

// entry is a file of the extension and the right it needs.
type entry struct {
	need Rights
	node tree.ExtNode
}

func (j *Journal) entries() []entry {
	const file, folder = unix.S_IFREG, unix.S_IFDIR
	openReint, openPermit, stage := j.openReint, j.openPermit, tree.Ext(stageDir{j})
	if j.o.Above != nil {
		openReint, openPermit, stage = j.above("reint"), j.above("permit"), stageAbove{j}
	}
	return []entry{
		{RightFollow, tree.ExtNode{Name: "kml", ID: idKML, Mode: file | 0o444, Size: j.kmlSize, Open: j.openKML}},
		{RightFollow, tree.ExtNode{Name: "log", ID: idLog, Mode: file | 0o444, Size: j.text.size, Open: j.openLog}},
		{RightFollow, tree.ExtNode{Name: "feed", ID: idFeed, Mode: file | 0o666, Open: j.openFeed}},
		{RightFollow, tree.ExtNode{Name: "snapshot", ID: idSnapshot, Mode: file | 0o666, Open: j.openSnapshot}},
		{RightWrite, tree.ExtNode{Name: "reint", ID: idReint, Mode: file | 0o666, Open: openReint}},
		{RightWrite, tree.ExtNode{Name: "permit", ID: idPermit, Mode: file | 0o666, Open: openPermit}},
		{RightWrite, tree.ExtNode{Name: "stage", ID: idStage, Mode: folder | 0o777, Dir: stage}},
		{RightFollow, tree.ExtNode{Name: "oid", ID: idOID, Mode: folder | 0o555, Dir: versionDir{j}}},
		{RightFollow, tree.ExtNode{Name: "chunks", ID: idChunks, Mode: folder | 0o555, Dir: chunksDir{versionDir{j}}}},
		{RightFollow, tree.ExtNode{Name: "digest", ID: idDigest, Mode: file | 0o666, Open: j.openDigest}},
		{RightRead, tree.ExtNode{Name: "status", ID: idStatus, Mode: file | 0o444, Text: true, Size: textSize(j.status), Open: j.openText(RightRead, "status", j.status)}},
		{RightFollow, tree.ExtNode{Name: "clients", ID: idClients, Mode: file | 0o444, Text: true, Size: textSize(j.clientLines), Open: j.openText(RightFollow, "clients", j.clientLines)}},
		{RightFollow, tree.ExtNode{Name: "policy", ID: idPolicy, Mode: file | 0o644, Text: true, Size: textSize(j.t.Policy), Open: j.openPolicy}},
		{RightFollow, tree.ExtNode{Name: "damaged", ID: idDamaged, Mode: file | 0o444, Text: true, Size: textSize(j.t.DamagedText), Open: j.openText(RightFollow, "damaged", j.t.DamagedText)}},
		{RightWrite, tree.ExtNode{Name: "mend", ID: idMend, Mode: folder | 0o777, Dir: mendDir{j}}},
		{RightAdmin, tree.ExtNode{Name: "ctl", ID: idCtl, Mode: file | 0o200, Open: j.openCtl}},
	}
}

// Lookup is tree.Ext's. Whoever walks to a file may see that it is there; the
// right is asked for when it is opened.
func (j *Journal) Lookup(_ context.Context, _ *tree.Cred, name string) (tree.ExtNode, error) {
	for _, e := range j.entries() {
		if e.node.Name == name {
			return e.node, nil
		}
	}
	return tree.ExtNode{}, syscall.ENOENT
}

// List is tree.Ext's: the entries the caller may open.
func (j *Journal) List(ctx context.Context, c *tree.Cred) ([]tree.ExtNode, error) {
	rights := j.rights(j.identity(ctx, c))
	var list []tree.ExtNode
	for _, e := range j.entries() {
		if rights&e.need != 0 {
			list = append(list, e.node)
		}
	}
	return list, nil
}

// only refuses flags that ask for more than reading.
func only(flags int) error {
	if flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_TRUNC != 0 {
		return syscall.EACCES
	}
	return nil
}

// readOnly is the part of an ExtHandle that most entries share: nothing to
// write, nothing to say of themselves, nothing to close.
type readOnly struct{}

func (readOnly) WriteAt(context.Context, []byte, int64) (int, error) { return 0, syscall.EBADF }
func (readOnly) Attr() (tree.Attr, bool)                             { return tree.Attr{}, false }
func (readOnly) Close() error                                        { return nil }
