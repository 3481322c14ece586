// Package testscripts tests the program as a user sees it: each .txtar file
// is a script that testscript runs against the real program, real sockets and
// real mounts.
//
// A script runs in a folder of its own, $WORK. Whatever it leaves behind, also
// after a failure, is unmounted and killed at its end; nothing else on the
// machine is touched. Besides testscript's own commands there are
//
//	await [-t SECONDS] COMMAND [ARG...]  run COMMAND until it succeeds
//	awaitgrep [-t SECONDS] REGEXP FILE   wait until a line of FILE matches
//	awaitmount MNT                       wait until MNT is a mount that answers
//	awaitgone PATTERN                    wait until no process matches
//	signal SIG PATTERN                   send a signal to the script's processes
//	                                     whose command line contains PATTERN
//	sametree A B                         compare two trees: names, types, modes,
//	                                     owners, times, contents, links, xattrs
//	oddtree DIR                          make a tree with everything a name and a
//	                                     file may be
//	gotree DIR [PACKAGE]                 copy (a package of) the Go source tree
//
//	peer SOCKET DIR                      serve DIR with hugelgupf/p9's server
//	readme FILE                          write the README's session as a script
//	guest ADDR SCRIPT                    run a script on a Linux kernel of its
//	                                     own, where $HOST:564 leads to ADDR
//
// and the variable $PORT, a TCP port that is free, and the conditions [fuse], [root], [guest] and [long].
package testscripts
