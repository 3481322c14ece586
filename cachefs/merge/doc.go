// Package merge joins two versions of a file that were made from one: by a rule
// (Append), or by a program that this host's user has set down (Programs, Run).
//
// A fileset only names a program; what is run under that name is in a file of the
// host's own:
//
//	# NAME = COMMAND ARGUMENT ...
//	git = git merge-file -p %ours %base %theirs
//	po  = "/opt/my tools/merge-po" --output %out %base %ours %theirs
//
// %base, %ours and %theirs become the paths of copies of the three versions, %out
// the path of a file to be made; without a %out the result is what the program
// prints. It succeeds with exit status 0. No shell is involved.
package merge
