// Command bench9p compares 9P servers side by side; see internal/bench9p.
package main

import (
	"os"

	"github.com/mezzofs/mezzo/internal/bench9p"
)

func main() { os.Exit(bench9p.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
