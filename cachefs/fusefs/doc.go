// Package fusefs shows a tree.FS at a mount point through FUSE. It may stand
// over a master's tree or over a client's cache; it cannot tell them apart.
//
// # Which API of go-fuse
//
// The package implements go-fuse's raw interface, fuse.RawFileSystem, and not
// its tree of inodes (package fs). A tree.FS is by object id already, so the
// kernel's node id is the oid itself and a request is one call: there is no
// second tree of paths to keep in step with renames, a forget is a counter,
// and hard links, unlinked open files and very deep folders need no care. It
// also leaves to us what the other interface decides by itself: when a reply
// may be cached, and what a node id stands for.
//
// A node id differs from the oid in two cases. Entries of the journal
// extension (.mezzo in the root) have ids of their own, from the part of the
// id space whose site is 0, which mints no objects. And a node stands for one
// file's contents over all that is written to them in place, but not over their
// replacement (tree.Attr.Content): once an answer of the FS or a change tells of
// other contents the node is retired. Those who read through it keep it, with its
// page cache, its size and its version, and everybody else gets a new node with
// the same inode number. The kernel takes the size of a new node from the reply
// that brings it, while that of a node it knows it takes only when nothing was
// revoked since it asked; so this is also what keeps size and bytes together.
//
// An open whose handle reads other contents than its node has is answered with
// ESTALE: the kernel looks the name up again, once. When the next replacement is
// quicker than that too, the open gets the handle of a reader of the retired
// node; or, without one and for writing, reads and writes past the page cache.
//
// # What the kernel may keep
//
// Everything, for ever (Options' timeouts change that): entries, negative
// entries, attributes, pages, folder listings, link targets. It is revoked by
// notification. FS.Watch feeds a queue; for each change the kernel cannot know
// of itself
//
//   - an entry is invalidated, which waits for lookups in flight in that
//     folder, and then the folder's attributes and listing;
//   - an object's attributes and ACLs are invalidated, and its pages if its
//     contents changed.
//
// Each folder and each object has at most one worker, which holds no lock and
// serves no request: an entry notification inside a handler deadlocks for good.
// What arrives while a worker is busy is joined. When too many names wait, all
// entries of the mount are made to expire at once, by the kernel's entry epoch
// (Linux 6.16; without it the queue holds the names, each once).
//
// A notification waits in the kernel for locks that requests in flight have,
// and nothing but their answers ends that. So a process that is killed there would
// wait for its own answers, for ever, and whoever sent the requests with it. The
// threads that write notifications have file descriptors of their own for that
// reason (notifier.go): those that requests were read from close without them,
// which has the kernel answer.
//
// A reply on its way to the kernel can be overtaken by the notification that
// revokes it. Four things make that harmless. The kernel orders entries by the
// folder's lock, and replies to getattr, and lookups of objects it knows, by
// its attribute version. A reply for an object the kernel does not know yet is
// not cached if the object changed since the handler began (the ring in
// notify.go), and a notification that finds no inode for a node that was
// handed out is repeated until it does or the node is forgotten. Replies to
// setattr and link, which the kernel takes unseen, are never cached. A folder's
// entries are revoked before its listing, so that a listing in flight has
// ended when its pages go.
//
// One window is open: a file that is held open for writing through this mount
// and is replaced keeps its node, since what is written follows the object. Who
// only reads it through the same node meanwhile may see both.
//
// # Rights
//
// The kernel decides (default_permissions), ACLs included, and each call
// carries the caller's uid and gid with Cred.Checked. The umask is ours to
// apply, because a default ACL replaces it; group and setgid of a new object
// are taken from a setgid folder here; setuid, setgid and file capabilities
// are cleared here when somebody else writes, truncates or changes the owner.
//
// # Interruption
//
// FUSE tells a server of any signal to the caller, also of those a program
// handles and a local file system would not notice. So the context of a call
// ends only when the caller is being killed or the mount goes; locks and
// streams of the journal extension, where waiting is the point, end on any.
//
// # Locks of the package
//
// The shards of the node table and its alias lock (which is taken before a
// shard), file.mu, files.mu, limbo.mu, late.mu, ring.mu, queue.mu. Otherwise none is held while
// another is taken, nor over a call of the FS or a write to the kernel.
package fusefs
