// Package chunks describes the contents of a file as a tree of hashes, so that
// two hosts with two versions of a large file find out where they differ for a
// few hundred bytes, and only that has to move.
//
// A file is cut into chunks of 16 KiB, each hashed with BLAKE3; 64 hashes are
// hashed into one of the level above, and so on up to a single root. Level k
// stands for 16 KiB * 64^k bytes each:
//
//	level 3                      root
//	level 2        h0 ................. h15          64 MiB each
//	level 1   h0 .. h63   ...                         1 MiB each
//	level 0   h0 .. h63 h64 ...                      16 KiB each
//
// Chunks have a fixed size. Large files that change in part are those written in
// place (disk images, databases, mailboxes), which move nothing; what is inserted
// in the middle of a file is rare there, and boundaries that follow the contents
// would cost a second, slower pass over every byte and agree neither with the
// extents of the log nor with blocks that a file system shares.
//
// # Format
//
// A tree as bytes is a header of 64 and then the hashes of all levels, the root
// first, each level in the order of the file. The size of the file says where
// each of them stands, so a reader asks for no more than it needs.
//
//	0   "MZCT", u32 version
//	8   u64 size of the file
//	16  u64 which version of the file this is: a position
//	24  u32 size of a chunk, u32 hashes in one of the level above
//	32  zeros
//
// A Tree is not changed once it is made; it may be used by many goroutines.
package chunks
