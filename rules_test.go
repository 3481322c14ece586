package mezzo

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/mezzofs/mezzo"

// arrows says which of our own packages each package may import outside its
// tests. A package that is not here may not exist.
var arrows = map[string][]string{
	".":                         {},
	"cmd/mezzo":                 {"internal/cli"},
	"cmd/bench9p":               {"internal/bench9p"},
	"internal/cli":              {"cachefs", "cachefs/conflicts", "cachefs/fusefs", "cachefs/merge", "p9srv", "p9srv/client", "p9srv/wire", "p9srv/export", "p9srv/plain", "kml/tree", "kml/feed", "kml/replay", "kml/conflict", "kml/glob", "kml", "man", "internal/fault"},
	"internal/bench9p":          {"p9srv", "p9srv/wire", "p9srv/export", "p9srv/plain", "kml/tree"},
	"internal/asuser":           {},
	"p9srv/plain":               {"p9srv", "p9srv/wire", "internal/asuser"},
	"internal/testutil":         {"internal/fault"},
	"internal/testutil/disk":    {},
	"internal/fault":            {},
	"internal/node":             {"kml"},
	"man":                       {},
	"cachefs":                   {"cachefs/conflicts", "cachefs/merge", "kml/tree", "kml/chunks", "kml/conflict", "kml/glob", "kml/feed", "kml/local", "kml", "p9srv/client", "p9srv/wire", "internal/fault"},
	"cachefs/conflicts":         {"kml/conflict", "kml"},
	"cachefs/merge":             {},
	"cachefs/fusefs":            {"kml/tree", "kml", "internal/fault"},
	"p9srv":                     {"p9srv/wire", "internal/fault"},
	"p9srv/wire":                {},
	"p9srv/client":              {"p9srv/wire"},
	"p9srv/export":              {"p9srv", "kml/tree", "kml/chunks", "kml/conflict", "kml/feed", "kml", "internal/fault"},
	"kml":                       {"internal/fault"},
	"kml/feed":                  {"kml"},
	"kml/glob":                  {},
	"kml/chunks":                {"kml"},
	"kml/conflict":              {"kml", "kml/glob"},
	"kml/conflict/conflicttest": {"kml", "kml/conflict"},
	"kml/local":                 {"kml", "internal/fault"},
	"kml/replay":                {"kml", "internal/fault", "internal/node"},
	"kml/tree":                  {"kml/local", "kml/glob", "kml/chunks", "kml", "internal/fault", "internal/node"},
	"testscripts":               {"internal/cli", "testscripts/guest"},
	"testscripts/guest":         {"p9srv", "p9srv/plain", "p9srv/export", "kml/tree", "kml"},
}

// external says which modules a library may import besides the standard
// library; packages that are not here may import any that go.mod names.
var external = map[string][]string{
	"kml":            {"golang.org/x/sys"},
	"kml/feed":       {"golang.org/x/sys"},
	"kml/glob":       {},
	"kml/conflict":   {},
	"p9srv/wire":     {"github.com/hugelgupf/p9", "golang.org/x/sys"},
	"internal/fault": {},
}

// maxLines is the most a file may have.
const maxLines = 600

// source is one parsed Go file of the repository.
type source struct {
	path  string // slash separated, from the root
	dir   string
	test  bool
	lines int
	fset  *token.FileSet
	file  *ast.File
}

func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && p != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(p, ".go") {
			return nil
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, p, text, parser.ParseComments)
		if err != nil {
			return err
		}
		all = append(all, source{
			path: filepath.ToSlash(p), dir: path.Dir(filepath.ToSlash(p)),
			test: strings.HasSuffix(p, "_test.go"), lines: strings.Count(string(text), "\n"),
			fset: fset, file: f,
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestImportArrows(t *testing.T) {
	for _, s := range sources(t) {
		allowed, known := arrows[s.dir]
		if !known {
			t.Errorf("%s: package %s has no place in the layout", s.path, s.dir)
			continue
		}
		if s.test {
			continue
		}
		for _, imp := range s.file.Imports {
			p, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if own, ok := strings.CutPrefix(p, module+"/"); ok {
				if !slices.Contains(allowed, own) {
					t.Errorf("%s imports %s, which the layout does not allow", s.path, own)
				}
				continue
			}
			if mods, limited := external[s.dir]; limited && strings.Contains(p, ".") && !under(mods, p) {
				t.Errorf("%s imports %s, which this package does without", s.path, p)
			}
		}
	}
}

func TestPackageComments(t *testing.T) {
	dirs, documented := map[string]bool{}, map[string]bool{}
	for _, s := range sources(t) {
		if !s.test {
			dirs[s.dir] = true
		}
		if path.Base(s.path) == "doc.go" && s.file.Doc != nil {
			documented[s.dir] = true
		}
	}
	for d := range dirs {
		if !documented[d] && !strings.HasPrefix(d, "cmd/") {
			t.Errorf("%s has no doc.go with a package comment", d)
		}
	}
}

func TestFileSizes(t *testing.T) {
	for _, s := range sources(t) {
		if s.lines > maxLines {
			t.Errorf("%s has %d lines, over %d", s.path, s.lines, maxLines)
		}
	}
}

// TestBannedCalls finds what no library and no test may do. A context made
// from nothing needs a comment beside it that says why.
func TestBannedCalls(t *testing.T) {
	for _, s := range sources(t) {
		command := strings.HasPrefix(s.dir, "cmd/") || s.dir == "internal/cli"
		commented := commentLines(s)
		for _, d := range s.file.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if fn.Name.Name == "init" && fn.Recv == nil {
				t.Errorf("%s: func init", s.fset.Position(fn.Pos()))
			}
			ast.Inspect(fn, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				name, pos := calledName(call), s.fset.Position(call.Pos())
				switch {
				case s.test && drawsBlindly(s, name):
					t.Errorf("%s: %s draws what no -seed repeats: take testutil.Rand or testutil.Check", pos, name)
				case (name == "testutil.Rand" || name == "testutil.Check") && !strings.HasPrefix(fn.Name.Name, "Test"):
					t.Errorf("%s: %s outside a test, where make soak does not find it", pos, name)
				case name == "time.Sleep" && s.test:
					t.Errorf("%s: a test sleeps instead of waiting for the thing itself", pos)
				case name == "panic" && !s.test:
					t.Errorf("%s: panic", pos)
				case (name == "os.Exit" || strings.HasPrefix(name, "log.Fatal")) && !strings.HasPrefix(s.dir, "cmd/") && fn.Name.Name != "TestMain":
					t.Errorf("%s: %s", pos, name)
				case strings.HasPrefix(name, "fmt.Print") && !s.test:
					t.Errorf("%s: %s writes to a standard output that is not this package's", pos, name)
				case (name == "context.Background" || name == "context.TODO") && !s.test && !command &&
					!commented[pos.Line] && !commented[pos.Line-1]:
					t.Errorf("%s: %s without a comment that says why", pos, name)
				}
				return true
			})
		}
	}
}

// drawsBlindly says that a call takes a random number from the process's own
// source, or has rapid choose its seed.
func drawsBlindly(s source, name string) bool {
	if name == "rapid.Check" || name == "quick.Check" {
		return s.dir != "internal/testutil"
	}
	f, ok := strings.CutPrefix(name, "rand.")
	if !ok || strings.HasPrefix(f, "New") {
		return false
	}
	return slices.ContainsFunc(s.file.Imports, func(i *ast.ImportSpec) bool {
		return strings.HasPrefix(i.Path.Value, `"math/rand`)
	})
}

func commentLines(s source) map[int]bool {
	m := map[int]bool{}
	for _, g := range s.file.Comments {
		for l := s.fset.Position(g.Pos()).Line; l <= s.fset.Position(g.End()).Line; l++ {
			m[l] = true
		}
	}
	return m
}

// calledName is pkg.Func for a call of a package's function, or the bare name.
func calledName(call *ast.CallExpr) string {
	switch f := call.Fun.(type) {
	case *ast.Ident:
		return f.Name
	case *ast.SelectorExpr:
		if x, ok := f.X.(*ast.Ident); ok {
			return x.Name + "." + f.Sel.Name
		}
	}
	return ""
}

func under(list []string, s string) bool {
	for _, e := range list {
		if s == e || strings.HasPrefix(s, e+"/") {
			return true
		}
	}
	return false
}
