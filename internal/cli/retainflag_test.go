package cli

import (
	"testing"
	"time"
)

func TestRetainFlags(t *testing.T) {
	for in, want := range map[string]string{"0": "0", "1": "1", "1023": "1023", "1024": "1K", "3M": "3M", "2g": "2G", "1T": "1T", "1025K": "1025K"} {
		var f sizeFlag
		if err := f.Set(in); err != nil || f.String() != want {
			t.Errorf("size %s: %s, %v", in, f.String(), err)
		}
	}
	for in, want := range map[string]string{"0": "0s", "30d": "30d", "0d": "0s", "36h": "36h0m0s", "48h": "2d", "10ms": "10ms"} {
		var f ageFlag
		if err := f.Set(in); err != nil || f.String() != want {
			t.Errorf("age %s: %s, %v", in, f.String(), err)
		}
	}
	for _, bad := range []string{"", "-1", "K", "1.5G", "9999999T", "1 G", "x"} {
		if err := new(sizeFlag).Set(bad); err == nil {
			t.Errorf("size %q passes", bad)
		}
		if err := new(ageFlag).Set(bad); err == nil {
			t.Errorf("age %q passes", bad)
		}
	}
	f := defaultRetain()
	if size, age := f.policy(); size != 1<<30 || age != 30*24*time.Hour {
		t.Error(size, age)
	}
	f = retainFlags{}
	if size, age := f.policy(); size != 1 || age != 1 {
		t.Error(size, age)
	}
}
