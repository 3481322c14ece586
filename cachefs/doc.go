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
// plus what was written here and has not come back. While the state is
// Connected everything cached is current up to the cursor without asking. A
// file opened for reading keeps the version it was opened on: bytes of two
// versions are never mixed. A file that is larger than WholeMax and not wholly
// here can fail with ESTALE when the master no longer has that version.
//
// # What a writer may count on
//
// A change of names or attributes returns when the master has decided on it and
// it is visible here. Contents go to the cache at once; at the last close (a
// flush), at fsync, after a second without a write, or every 30 s of steady
// writing they become a store, which is sent in order with everything else.
// close does not wait for the master, unless Options.Sync is set; fsync does
// while there is a link.
//
// A record gets its number when it is frozen and is in the outbox before its
// first byte is sent. It is sent again, byte for byte, until the master has
// decided, and stays until it is durable there. The master applies each number
// once. What it refuses to somebody who waits is his error; contents that
// conflict become a file beside the master's, and any other refusal is a line
// in status, with the bytes kept.
//
// # States
//
//	Disconnected -> CatchingUp -> Connected -> Disconnected ...
//
// Without a link what is present can be read and open files can be written;
// what needs the master fails with EHOSTDOWN, at once, or within Grace just
// after a loss. A change that was sent when the link broke waits Answer for it
// to come back with the outcome.
//
// # Goroutines and locks
//
// run connects and follows: it alone applies records. pushLoop alone freezes and
// sends. Listings and fetches run for whoever asks, shared by those who ask for
// the same. All end with Close.
//
// Lock order: pusher.turn, the cache's locks, pusher.mu, outbox.mu. Client.mu is taken under
// none of them and none is taken under it but the cache's cursor.
package cachefs
