// Command server serves a folder over 9P2000.L with the peer library's server:
// server ADDRESS DIR.
package main

import (
	"log"
	"net"
	"os"

	"github.com/hugelgupf/p9/fsimpl/localfs"
	"github.com/hugelgupf/p9/p9"
)

func main() {
	ln, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(p9.NewServer(localfs.Attacher(os.Args[2])).Serve(ln))
}
