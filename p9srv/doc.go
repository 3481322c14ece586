// Package p9srv is a 9P server engine: it serves any hugelgupf/p9 Attacher
// over any byte stream. It knows no log and no Mezzo tree.
//
//	srv := p9srv.New(localfs.Attacher("/srv"), p9srv.Options{})
//	l, err := p9srv.Listen(ctx, "unix!/run/files.sock")
//	...
//	err = srv.Serve(ctx, l)
//
// # Dialects
//
// 9P2000.L, 9P2000.u and 9P2000 as Linux's v9fs speaks them, negotiated per
// connection; any other version string is answered with "unknown", one with a
// period and more behind one of these with what stands before (version(5) of
// Plan 9). In the two old ones a folder is read as stat entries, users of 9P2000
// are decimal numbers, and Linux's errnos have Linux's texts. The codec
// is package wire. A client's msize is granted up to Options.MaxMessageSize;
// iounit is the File's, and 0 from most. A Tversion in the middle of a
// session ends what it was: requests are cancelled and not answered, fids are
// closed, and then it is answered.
//
// # Life of a message
//
// One goroutine a connection reads as many messages as the kernel has with one
// read, and answers on the spot those that cannot block: the File says so
// (InPlacer), and may take it back (ErrWouldBlock). Their answers leave
// together when the input runs dry. Everything else becomes a request and runs
// on a worker, of which a connection starts more when requests stand in line
// for a millisecond. Answers are sent as they come. So a File without
// InPlacer costs two thread hand-overs a message and is otherwise served the
// same.
//
// Large data need not go through a buffer as a whole: a File may give the pages
// of a read to the connection (PipeReader), and take a write as it comes in
// (PartWriter). Syncs of a fid that wait for one that runs are joined.
//
// Fids are taken in the order messages arrive. Requests that end, make, open
// or move a fid have it for themselves, others share it, and one that cannot
// have its fids waits for them. A client may therefore send walk, open, read
// and clunk at once. Between fids, and between reads and writes of one fid,
// there is no order: requests overtake each other.
//
// A Tflush ends the context of its request (see Binder) and is answered when
// that is over, behind its answer; a request that has not begun is dropped
// unanswered. A clunk waits for the requests that use its fid and does not
// cancel them.
//
// The end of a connection ends all contexts. When the last request is over
// every fid is closed, with a context that has ended (see Closer). A File that
// waits without looking at a context keeps ServeConn and Close waiting.
//
// # Guarantees to Files
//
//   - A plain File gets those of p9.File: read, write and global exclusion, by
//     locks for each name in use, Renamed for every File in and under what was
//     renamed, and no operation on a folder that was removed. Excepted is
//     open, read and write of FIFOs, sockets and character devices, which may
//     wait for ever: they run without locks.
//   - A Concurrent File gets none, and is faster for it.
//   - Names are checked before a File sees them: never empty, ".", with '/' or
//     NUL or over 255 bytes, and ".." only in a walk, where it does not lead out
//     of what was attached.
//   - Open is called at most once on a File, and never on a symbolic link; read
//     and write only after it, and as its flags allow. Close is called once.
//   - A File's panic is an EIO and a line in the log, with the stack.
//
// # Users
//
// Tattach says who attaches, by number (n_uname) or name; AttacherAs is told.
// Over a unix socket that has to be the peer, as the kernel knows it, or the
// peer is root; else the answer is EPERM. Over other transports it is a claim,
// and User.Proven is false. There is no authentication: Tauth is answered with
// EOPNOTSUPP, which clients take for "none needed". This goes with v9fs's
// access=user, client and any alike, for it attaches for each user. In 9P2000 a
// name may be a number.
//
// Who may be root at a client can make device nodes and setuid files through a
// server that is root; Options.NoDevices and NoSetID refuse them.
//
// # Limits
//
// Fids, requests in progress and memory are bounded for each connection
// (Options). Who does not read its answers is not read from any more; nobody
// else notices. A frame of impossible size, or a tag that is in use, ends the
// connection; any other nonsense is an Rlerror.
//
// # Locks, in order
//
//	tree.names       every operation on a plain File; for writing: renames
//	node.mu          a name's, folder before entry
//	places.mu        the trees
//	tree.mu          names, nodes and places; no File is called under it
//	session.mu       fids, tags and workers; no File, no I/O
//	outq.mu          answers; no I/O
//	pipes.mu         pipes that are free
package p9srv
