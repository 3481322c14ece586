// Package cli is the command line: one file a command, and what they share.
//
// Main runs one command in an Env and returns its exit code; it touches
// nothing of the process but what the Env gives it, and the file systems and
// sockets the command is about. So tests and scripts run it as the program
// does.
//
// # Errors
//
// A command that fails prints one line:
//
//	mezzo COMMAND: THING: WHAT WENT WRONG: WHAT TO DO
//
// where the last part is left out when there is nothing better to say than
// the error itself. It ends with one of these codes:
//
//	0    done
//	1    it failed
//	2    the command line is wrong
//	3    the master cannot be reached, or what answers is no master
//	4    the fileset, the address or the mount point is in use
//	128+N   forced to end by a second signal N
//
// As mount.mezzo, run by mount(8), the codes are mount's: 0, 1 (command line)
// and 32 (the mount failed).
//
// # Signals
//
// The first SIGINT, SIGTERM or SIGHUP cancels the command's context: it
// unmounts, flushes and releases, and ends with code 0 if it was a server. A
// second one detaches the mounts and ends the process at once; a fileset needs
// no repair after that either.
package cli
