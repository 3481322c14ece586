// Mezzo serves, mounts and follows filesets: see package cli and mezzo(1).
package main

import (
	"os"

	"github.com/mezzofs/mezzo/internal/cli"
)

func main() {
	env := cli.System()
	env.Exit = os.Exit
	os.Exit(cli.Main(env))
}
