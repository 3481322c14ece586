// Package plain serves a directory as it is, without a log: a p9srv tree whose
// files are descriptors.
//
//	t, err := plain.Open("/srv", plain.Options{})
//	srv := p9srv.New(t, p9srv.Options{})
//
//	tree.go       open, attach, who is served as whom
//	node.go       one descriptor an object, shared by its fids
//	file.go       a fid: walk, attributes
//	io.go dir.go  open files, open folders
//	splice.go     large reads that are not copied
//	name.go       what makes, moves and removes names
//	lock.go xattr.go
//
// # Objects
//
// Every fid on an object shares one O_PATH descriptor of it. It keeps the inode,
// so the fid follows its file through renames by anybody and stays usable when
// the last name goes; and as long as it is open nothing else gets the inode's
// number, by which a walk finds out that an object is known already. Folders
// stay open for a while after their last fid.
//
// A qid's path is the inode number; objects of another file system than the
// tree's root have a number of that file system in it, too. Its version is made
// of the times, the size and a count of writes, and never 0.
//
// # What cannot be reached
//
// Names are taken one at a time from descriptors of folders, never following a
// link, and ".." is checked to lie below the root. Nothing a client says is ever
// a path. Files are opened anew through /proc/self/fd, which has to be mounted.
//
// # Users
//
// A server that is root runs what a user does with the user's ids (see
// internal/asuser), so that the kernel's rules decide; operations of other
// users than root then cost a hand-over. Any other server serves everybody as
// itself. Open sets the process's umask to 0: a client applies its own.
//
// # What can wait
//
// A listing in place ends with what a short folder holds; of a long one it is done
// again elsewhere.
// Reads in place ask for what is in the page cache and are done again elsewhere
// if it is not. FIFOs and devices are opened, read and written elsewhere only,
// and never waited for in the kernel: what is not ready is tried again until it
// is or the request ends.
//
// # Locks
//
// Byte-range locks are those of open file descriptions, one a fid: programs on
// the host respect them. Two fids of one process conflict, unlike fcntl(2)'s.
package plain
