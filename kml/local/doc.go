// Package local is a host's own changes that its master has not taken for good:
// the local log, and in it the outbox of those that have got their numbers.
//
//	l, err := local.Open(dir)
//	e := &local.Entry{Rec: r, At: cursor}
//	err = l.Append(e)          // the change is made: it survives the process
//	err = l.Freeze(site, e)    // it has its number, and its bytes stay as they are
//	... send e.Raw until the outcome is known ...
//	err = l.Done(e)            // it has come back and is durable at the master
//
// A log is a folder:
//
//	log   entries, appended: u32 length of the body, u32 CRC-32C of kind and
//	      body, u8 kind, body
//	ID    the contents of the store of that ID (hexadecimal)
//
// All integers are little-endian. The kinds, and their bodies:
//
//	1 a change       u64 ID, u64 position of the master it was made at, u64 ID
//	                 of the own change whose contents it replaces (or 0), u64 ID
//	                 of the one whose contents its victim has (or 0), u8 1 when it
//	                 has contents, record as in package kml, without origin
//	2 it is frozen   u64 ID, record as it is sent
//	3 it is done     u64 ID
//	4 numbers are used below u64
//	5 it is thawed   u64 ID: refused, and to be sent under another number
//	6 a group        entries, all of which count or none
//	7 synced         u64 offset: what stands in front of it in this file is on the
//	                 disk, contents included
//
// A change that comes again under its ID replaces the one before. What follows
// the last whole entry was being written by a process that was killed, and is
// cut. The file is written anew, by rename, when most of it is done.
//
// After a crash of the machine the log may have changes whose contents are not on
// the disk, or not all of them. Recover goes back to where the log can be told to
// be whole: never before what was synced.
//
// The order of changes is that of their IDs. IDs leave room between them, so
// that a change can be put in the middle.
//
// All methods of a Log may be called at the same time. An Entry's ID
// and At never change, After and Over only while it is not frozen, by Amend; Rec and Raw are replaced and never written to, under the
// log's lock: Entry.Now gives both.
package local
