package bench9p

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// TestMain is a server when bench starts this program as one.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "-serve" {
		os.Exit(Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// TestRows runs every row against every server that is here, for the shortest
// time there is; it looks at no number.
func TestRows(t *testing.T) {
	servers := kinds
	if _, err := exec.LookPath("/usr/sbin/diod"); err != nil {
		servers = servers[1:]
	}
	var out, errs bytes.Buffer
	dir := t.TempDir()
	code := Main([]string{
		"-disk", dir, "-memory", dir, "-servers", strings.Join(servers, ","), "-shapes", "1x1,2x4", "-idle", "3x20", "-rounds", "1", "-time", "1ns",
	}, os.Stdin, &out, &errs)
	if code != 0 || errs.Len() > 0 {
		t.Fatalf("exit code %d\n%s", code, &errs)
	}
	for _, r := range rows() {
		if n := strings.Count(out.String(), "\n"+r.name); n != 2*len(networks) {
			t.Errorf("%q stands in %d tables of %d", r.name, n, 2*len(networks))
		}
	}
	for _, k := range servers {
		if n := len(regexp.MustCompile(`(?m)^`+k+` +-?[0-9.]+ +-?[0-9]+ *$`).FindAllString(out.String(), -1)); n != 1 {
			t.Errorf("%d weights of %s in\n%s", n, k, &out)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestFlags(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"-servers", "nfs"}, `no server "nfs"`},
		{[]string{"-networks", "tcp,udp"}, `no network "udp"`},
		{[]string{"-shapes", "4"}, `-shapes "4"`},
		{[]string{"-shapes", "0x4"}, `-shapes "0x4"`},
		{[]string{"-idle", "1000"}, `-idle "1000"`},
		{[]string{"-rounds", "0"}, "have to be positive"},
		{[]string{"-run", "("}, "missing closing )"},
	} {
		var errs bytes.Buffer
		if code := Main(c.args, nil, &errs, &errs); code != 2 || !strings.Contains(errs.String(), c.want) {
			t.Errorf("%v: exit code %d, %q; want 2 and %q", c.args, code, &errs, c.want)
		}
	}
}
