// Package bench9p compares 9P servers in one run: this project's over a
// plain directory and over a journaled one, Debian's diod, and hugelgupf's
// localfs under its own server and under ours.
//
//	go run ./cmd/bench9p -run 'getattr|walk' -shapes 1x1,1x16 -time 200ms
//
// Every server is a process of its own and gets the same bytes from the same
// generator: messages encoded here, a blocking socket, one read for all answers
// that are there and one write for all that is ready. It asks for 1 MiB
// messages and uses what it is granted. Servers take turns, row by row, several
// rounds; the median round counts. CPU is what the server's process used,
// threads that have ended included.
//
// Memory is what the server's process has more of (RssAnon in proc(5), so without
// what the kernel keeps for sockets) with many connections that have attached and
// are idle, and with fids on each.
//
// diod 1.0.24 knows neither Tunlinkat nor Trenameat: as from the kernel, it gets
// a walk and Tremove, and Trename.
//
// A row is measured with a number of rounds in flight on one or more
// connections. Numbers of a busy machine mean little by themselves: what counts
// are the ratios to diod, behind the slash.
package bench9p
