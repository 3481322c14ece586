// Package export serves a tree.FS over 9P, and builds the journal extension of
// a master: the folder .mezzo with the log, the feed and the doors for changes.
//
//	export.go ident.go        attach: who is served as whom, with what rights
//	file.go attr.go io.go     one fid on an object of the tree
//	dir.go name.go xattr.go lock.go
//	extfile.go                one fid on an entry of a tree.Ext
//
// # Users
//
// Every call on the FS carries the attaching user as its tree.Cred, so that the
// kernel's own rules decide; no Cred where that is the serving process itself
// (its user, or root on a root server). A server that is not root serves
// everybody as itself.
//
// # Locks of this package
//
// File.mu and extFile.mu are held for reading while their handle is used and for
// writing to open and close it; a lock that waits holds neither. Below them are
// only the FS's own locks. File.placeMu and lockHolder.mu are innermost.
package export
