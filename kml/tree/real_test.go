package tree

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// BenchmarkImport makes a fileset of a copy of the Go source tree.
func BenchmarkImport(b *testing.B) {
	dir := b.TempDir()
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		b.Skipf("no go command: %v", err)
	}
	if out, err := exec.Command("cp", "-a", filepath.Join(strings.TrimSpace(string(goroot)), "src"), dir).CombinedOutput(); err != nil {
		b.Skipf("no source tree to import: %v: %s", err, out)
	}
	root := filepath.Join(dir, "src")
	var files int64
	for b.Loop() {
		if err := os.RemoveAll(filepath.Join(root, ExtDirName)); err != nil {
			b.Fatal(err)
		}
		if err := Init(root, Options{NoWatch: true, Progress: func(n int64) { files = n }}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(files)*float64(b.N)/b.Elapsed().Seconds(), "files/s")
}
