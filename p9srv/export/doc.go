// Package export serves a tree.FS over 9P, and builds the journal extension of
// a master: the folder .mezzo with the log, the feed and the doors for changes.
//
//	export.go ident.go        attach: who is served as whom
//	file.go attr.go io.go     one fid on an object of the tree
//	dir.go name.go xattr.go lock.go
//	extfile.go extrefuse.go   one fid on an entry of a tree.Ext
//
//	journal.go rights.go      the journal extension, a tree.Ext without any 9P
//	kmlfile.go logfile.go     the log, raw and as text
//	feed.go snapshot.go       streams; stream.go is how both are read
//	reint.go session.go check.go stage.go
//	                          a client's changes, and contents on their way
//	mend.go                   contents of damaged files that a client still has
//	permit.go leases.go guard.go
//	                          locks and leases of clients, and the tree as the
//	                          master's other front ends change it
//	version.go text.go clients.go
//
// What the files of the extension say is in mezzo-9p(7).
//
// # Users
//
// Every call on the FS carries the attaching user as its tree.Cred, so that the
// kernel's own rules decide; no Cred where that is the serving process itself
// (its user, or root on a root server). A server that is not root serves
// everybody as itself.
//
// Rights to the extension go by who attached, before any squashing, and only
// where the transport proves it (Identity).
//
// # Streams
//
// feed, snapshot, reint and permit are read by offset, and the last answer can be read
// again. A read that waits ends with its request's context, with its fid, and
// with the Journal; it holds no lock but its stream's turn, and its extFile.mu
// for reading. A session of reint applies records in a goroutine of its own, so
// that no flush decides whether a record is applied. Journal.Close waits for
// these goroutines.
//
// # Locks of this package
//
// File.mu and extFile.mu are held for reading while their handle is used and for
// writing to open and close it; a lock that waits holds neither. Below them are
// Journal.smu, permitHandle.mu, clients.mu above client.mu, leases.mu, stage.mu,
// mending.mu, textLog.mu, outbox.mu, and the locks
// of the FS. File.placeMu and lockHolder.mu are innermost.
package export
