// Package kml is the log of a fileset's changes: records, their binary and
// text form, and the segmented append-only log they live in.
//
// It knows no tree, no 9P and no network. The bytes are laid down in
// mezzo-kml(5), exactly enough to write a second reader.
//
// # A log
//
// A log is a folder of segments, NNNNNNNN.kml, numbered without gaps:
//
//	00000001.kml  | header | record | record | ... | record |
//	00000002.kml  | header | record | ...
//
// A header says where the chain stands before the segment's first record:
// position, CRC, epoch id, and what the last mark says is durable. A record is
//
//	0      u32 length      4  'K'    5  u8 format    6  u16 opcode
//	8      u64 position   16  i64 time, ns
//	24     u32 uid        28  u32 gid
//	32     u64 origin     40  u16 flags              42 u16 zero
//	44     body: fields of tag, length, value; zeros to a multiple of 8
//	len-12 u32 CRC of the record before
//	len-8  u32 CRC-32C of [0, len-12), seeded with it
//	len-4  u32 length
//
// The CRCs are a chain, so two histories can be told apart at any position;
// and since a record names the CRC it follows, each can be checked by itself
// and the log read backwards.
//
// # What is on disk when
//
// Append writes into the page cache: it outlives the process, not the machine.
// Sync makes the log durable. Commit syncs, appends a mark that says up to
// where tree and log are durable (Base.Pos), and syncs that. The caller syncs
// the tree before; see CommitUpTo.
//
// # After a crash
//
// Open reads from what is known to be durable on. Bad bytes there that a mark
// found behind them covers are a *DamageError, and nothing is touched. Other
// bad bytes end the log: they and all behind them are cut, and Repaired says
// so. After a crash of the machine the owner calls CutAfter with the last
// position it trusts, which also begins a new epoch. Both write the new mark
// over the old bytes and sync it before they cut, so that what was known to be
// durable is still known however far they come.
//
// A batch that fails is taken back whole. An fdatasync that fails, or a tail
// that cannot be taken back, stops the log for writing.
//
// # Concurrency
//
// All methods of Log may be called at the same time; a Reader, ReverseReader
// or Reservation is for one goroutine. There are no goroutines inside. Lock
// order: Log.mu, Log.pub, segment.mu; a group's lock is held over none of them.
package kml
