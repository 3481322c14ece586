// Package cachefs is the client: a tree.FS over a cache that follows one master
// by its feed, fetches what is missing when it is used, and sends what is
// changed here.
//
//	c, err := cachefs.Open(ctx, cachefs.Options{Dir: "/var/cache/x", Addr: "unix!/run/x.sock"})
//	... serve c (it is a tree.FS, with an Ext) ...
//	err = c.Close(ctx)
//
// # What a reader may count on
//
// The tree that a client shows is the master's at one position (the cursor),
// with the changes of the local log on top. While the state is Connected
// everything cached is current up to the cursor without asking. A file opened for
// reading keeps the version it was opened on: bytes of two versions are never
// mixed. A file that is larger than WholeMax and not wholly here can fail with
// ESTALE when the master no longer has that version.
//
// # What a writer may count on
//
// A change of names or attributes is in the local log when it returns, which
// outlives the process. So are contents at the last close (a flush), at fsync,
// after a second without a write, or after 30 s of steady writing: they become a
// store. A crash of this machine takes nothing that was fsynced, and of the rest
// at most the last 5 s; what it leaves is a beginning of what was done.
//
// It makes no difference whether the master is there, but that while there is a
// link the master decides, before they succeed, on the operations by which
// programs exclude each other: creating with O_EXCL, mkdir, mknod, link, symlink
// and RENAME_NOREPLACE; with Options.Sync on all. fsync waits for the master
// while there is a link, and with Options.Sync so does close.
//
// # How changes are sent
//
// A change gets its number when it is frozen, and its frozen bytes are in the
// local log before the first of them is sent. Contents go first, into the
// master's stage, small ones many at a time and large ones beside everything
// else. Records go in batches, several on their way at a time, in the order in
// which they were made. A batch is sent again, byte for byte, until the master
// has decided; the master applies each number once. A change leaves the view when
// it comes back in the feed, and the local log when it is durable at the master
// and in the index here.
//
// The master only compares: it takes a change or says that its tree is not what
// the change was made for. Then the client, when it has caught up, settles the
// conflict as package kml/conflict says: on a draft of the tree the change, and
// those that depend on it, are amended, replaced or given up, and all of it is in
// the local log in one step (settle.go, tree.Cache.Settle). What has to be brought
// for it first, such as the master's bytes, or a merge program, holds up nothing
// else. Open files go with their bytes; what the tree does not show of two versions
// is in package conflicts. What the master refuses for
// another reason stays in the tree and the log and is tried again; what does not
// depend on it overtakes.
//
// # Full copies
//
// A Replica keeps a plain directory the equal of the master's tree instead of a
// cache: a snapshot first, then the feed, which one goroutine applies; large
// contents are fetched by oid, a few at a time. It serves others: their changes
// go to the master over links of their own, one a user (above.go).
//
// # States
//
//	Disconnected -> CatchingUp -> Connected -> Disconnected ...
//
// Without a link what is present can be used; what is not fails with EHOSTDOWN,
// at once, or within Grace just after a loss.
//
// # Goroutines and locks
//
// run connects and follows: it alone applies the master's records, and with each
// link runs receive, which takes in the outcomes of batches, and permits.serve, which
// asks for locks and leases and gives those up that are wanted. pushLoop alone
// freezes, sends and settles. Listings, fetches and large uploads have goroutines
// of their own. All end with Close.
//
// Lock order: pusher.turn, the cache's amu, pusher.mu, the cache's other locks.
// permits.mu is above locks.mu, pusher.mu and the local log's.
// Client.mu is taken under none of them and none is taken under it but the
// cache's cursor.
package cachefs
