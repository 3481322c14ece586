package guest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
)

// Build compiles the Go main package pkg (an import path, or a path relative
// to the working folder) into the file out as a static program that runs in a
// guest on every processor.
func Build(ctx context.Context, out, pkg string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-tags", "purego,netgo,osusergo", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, text)
	}
	return nil
}
