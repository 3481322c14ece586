package guest

import (
	"strings"
	"testing"
)

func TestEmulate(t *testing.T) {
	need(t, MissingQEMU())
	isolate(t)
	r, err := Run(t.Context(), Config{
		Emulate: true,
		Script:  `echo "out $WORD $(id -u) $(cat /etc/given)"; echo err >&2; grep -wE '9p|fuse' /proc/filesystems; exit 7`,
		Modules: []string{"fuse"},
		Files:   map[string]string{"/etc/given": "file"},
		Env:     []string{"WORD=it's here"},
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, r.Console)
	}
	t.Log(r.Took)
	if r.Code != 7 || !strings.HasPrefix(r.Stdout, "out it's here 0 file\n") || !strings.Contains(r.Stdout, "nodev\t9p\n") ||
		!strings.Contains(r.Stdout, "nodev\tfuse\n") || r.Stderr != "err\n" {
		t.Errorf("code %d, stdout %q, stderr %q\n%s", r.Code, r.Stdout, r.Stderr, r.Console)
	}
}
