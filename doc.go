// Package mezzo is the map of the repository; it holds no code.
//
// Mezzo is a distributed file system made of three plain parts: a master that
// serves a directory over 9P, a log (the KML) of every change to it, which is
// itself a file in the served tree, and clients that keep a cache, follow the
// log and so stay current.
//
// From the top down:
//
//	cmd/mezzo            the program: ten lines around internal/cli
//	internal/cli         the commands, one file each
//	cmd/bench9p          9P servers side by side, from internal/bench9p
//	man                  the manual pages, embedded in the program
//
//	cachefs              the client: cache, follow, fill, push
//	cachefs/conflicts    the open conflicts of a host, with the bytes that are kept
//	cachefs/merge        two versions of a file joined, by a rule or a program
//	cachefs/fusefs       any tree as a FUSE mount
//	p9srv                the 9P server engine; knows no log
//	p9srv/wire           the 9P messages as bytes
//	p9srv/client         the 9P client, with contexts and pipelining
//	p9srv/export         a journaled tree as a 9P tree, with its .mezzo folder
//	p9srv/plain          a directory as a 9P tree, without a log
//
//	kml/tree             the journaled tree over a directory: identity,
//	                     journaling, recovery, reconciling; and a cache's tree
//	kml/local            a host's own changes that its master has not taken yet
//	kml/conflict         what becomes of a host's change when the master's tree has
//	                     moved on: the table, the policies; conflicttest is a
//	                     master and clients in memory, and the table of tests
//	kml/glob             patterns for paths
//	kml/chunks           the contents of a file as a tree of hashes, to be compared from afar
//	kml/feed             the frames of feed, snapshot and reintegration
//	kml/replay           a log without its tree: names, and a plain directory made what it says
//	kml                  the log: records, segments, repair
//
//	internal/node        objects of a directory, made what a record says
//	internal/asuser      file operations with a user's ids
//	internal/fault       named points where tests may kill the process
//	internal/testutil    leak check, golden files, seeds; disk cuts the power
//	testscripts          what a user sees, as scripts against the program
//	testscripts/guest    guests with a Linux kernel's own 9P client
//
// Arrows of import only point down in this list, and p9srv and kml do not know
// each other; rules_test.go holds that still.
package mezzo
