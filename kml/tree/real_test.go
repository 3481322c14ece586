package tree

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// goSource copies the Go source tree into a fresh folder.
func goSource(b *testing.B) string {
	b.Helper()
	dir := b.TempDir()
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		b.Skipf("no go command: %v", err)
	}
	if out, err := exec.Command("cp", "-a", filepath.Join(strings.TrimSpace(string(goroot)), "src"), dir).CombinedOutput(); err != nil {
		b.Skipf("no source tree to copy: %v: %s", err, out)
	}
	return filepath.Join(dir, "src")
}

// BenchmarkImport makes a fileset of a copy of the Go source tree.
func BenchmarkImport(b *testing.B) {
	root := goSource(b)
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

// BenchmarkScan compares an unchanged copy of the Go source tree with its index.
func BenchmarkScan(b *testing.B) {
	root := goSource(b)
	if err := Init(root, Options{}); err != nil {
		b.Fatal(err)
	}
	tr, err := Open(root, Options{NoWatch: true})
	if err != nil {
		b.Fatal(err)
	}
	defer tr.Close()
	for b.Loop() {
		if err := tr.Scan(ctx); err != nil {
			b.Fatal(err)
		}
	}
}
