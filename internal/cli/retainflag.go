package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/mezzofs/mezzo/kml"
)

// sizeFlag is a number of bytes, such as 512M.
type sizeFlag struct{ bytes int64 }

// units are what may stand behind a number of bytes.
const units = "KMGT"

// String is the flag as it is given.
func (f *sizeFlag) String() string {
	n, unit := f.bytes, -1
	for n > 0 && n%1024 == 0 && unit+1 < len(units) {
		n, unit = n/1024, unit+1
	}
	if unit < 0 {
		return strconv.FormatInt(n, 10)
	}
	return strconv.FormatInt(n, 10) + units[unit:unit+1]
}

// Set parses the flag.
func (f *sizeFlag) Set(s string) error {
	num, shift := s, 0
	if i := strings.IndexByte(units, last(strings.ToUpper(s))); i >= 0 {
		num, shift = s[:len(s)-1], 10*(i+1)
	}
	n, err := strconv.ParseInt(num, 10, 64)
	if err != nil || n < 0 || n > 1<<62>>shift {
		return fmt.Errorf("%q is no size, such as 0, 512M or 2G", s)
	}
	f.bytes = n << shift
	return nil
}

func last(s string) byte {
	if s == "" {
		return 0
	}
	return s[len(s)-1]
}

// Type names the value in a usage text.
func (f *sizeFlag) Type() string { return "size" }

// ageFlag is a time that may be days, such as 30d.
type ageFlag struct{ age time.Duration }

const day = 24 * time.Hour

// String is the flag as it is given.
func (f *ageFlag) String() string {
	if f.age > 0 && f.age%day == 0 {
		return fmt.Sprintf("%dd", f.age/day)
	}
	return f.age.String()
}

// Set parses the flag.
func (f *ageFlag) Set(s string) error {
	if n, ok := strings.CutSuffix(s, "d"); ok {
		days, err := strconv.ParseUint(n, 10, 16)
		if err == nil {
			f.age = time.Duration(days) * day
			return nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return fmt.Errorf("%q is no age, such as 0, 12h or 30d", s)
	}
	f.age = d
	return nil
}

// Type names the value in a usage text.
func (f *ageFlag) Type() string { return "age" }

// retainFlags say how much of the log a master keeps.
type retainFlags struct {
	size sizeFlag
	age  ageFlag
}

func defaultRetain() retainFlags {
	return retainFlags{sizeFlag{kml.DefaultRetainSize}, ageFlag{kml.DefaultRetainAge}}
}

// policy is the flags as the tree takes them, where 0 is the default.
func (f *retainFlags) policy() (size int64, age time.Duration) {
	return max(f.size.bytes, 1), max(f.age.age, 1)
}
