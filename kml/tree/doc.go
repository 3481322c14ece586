// Package tree is the journaled tree: a directory in which every change is a
// record in a log, and an index that knows every object by its oid.
//
// # Two layouts, one behaviour
//
// A Tree keeps its objects in an ordinary directory whose names and attributes
// are the truth (a master, a full replica). A Cache keeps names and attributes
// in the index and the bytes of its objects, as far as they are present, in
// files named by oid (an on-demand client). Both are driven by the same records
// through the same index, and both are an FS, which is what front ends serve.
//
// A Replica is a Tree that takes no changes but its master's records: directory,
// log, index, record by record. Its index has all names and attributes at one
// position; what the directory could not be given yet stands there as missing,
// is tried again, and stops nothing else. A record that a kill left undecided is
// done again: until then (doubt) what lies under its names is taken for its own.
//
// # After a crash of the machine
//
// A file named running says that a process has the fileset open, and in which
// run of the machine. Found there at Open it means that the process was killed
// (same run: all it wrote is in the page cache, and the tables of intents and
// of open-dirty files say what to finish), or that the machine crashed (another
// run). Then only what a commit mark covers is known to be on disk: history
// ends there, a new epoch begins with a fresh site for the master, and the
// records behind the mark are evidence, held against the directory one by one.
// A record whose effect is there is logged again under its first origin. A file
// that was last changed while the crashed run went on and is not what its
// version says is damaged: it keeps its version, reading it is EIO, and it is no
// edit. A copied or restored fileset begins a new epoch at its log's end and
// finds its objects again by name.
//
// # The index
//
// Changes stand in memory until a commit covers them and go to the index's file
// then: after any crash it is as of a position that history still has, and only
// the records since are applied. When more than some tens of thousands of changes
// wait, whoever made the last makes a commit; should memory fill up all the same
// (changes of one caller that holds locks meanwhile), the file gets ahead, and
// after a crash of the machine is made again.
//
// bbolt has no checksums. Each entry has a CRC; the file says how many entries it
// has and what their CRCs add up to. How its pages hang together is looked at
// whenever it is opened; all entries are read then when the file is small or the
// last end was not clean, and else while it is in use. A file that is damaged is
// put aside, and changes stop until the next start.
//
// An index is made again from the checkpoint, which is the whole of it as of a
// position, every byte covered by a CRC, and the log since; without a checkpoint
// from the whole log. A checkpoint is written when the log has grown by 64 MiB and
// by more than the last one's size, and before segments are dropped that it would
// need. With the index, the checkpoint and the log's beginning all gone, a history
// begins that is cut off from the one before, and everything in the directory is
// a new object of it; what is left of the old one is put aside.
package tree
