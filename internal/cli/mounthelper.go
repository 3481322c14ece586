package cli

import (
	"context"
	"fmt"
	"strings"
)

// mountHelper is the name under which mount(8) runs the program for
// "mount -t mezzo".
const mountHelper = "mount.mezzo"

// mountHelperMain is mount.mezzo ADDR MNT [-sfnv] [-N NAMESPACE] [-o OPTIONS]
// [-t TYPE], as mount(8) calls it.
func (a *app) mountHelperMain(ctx context.Context) int {
	addr, mnt, flags, fake, err := a.parseHelperArgs(a.env.Args[1:])
	if err == nil && !fake {
		err = a.mount(ctx, addr, mnt, &flags)
	}
	if err == nil {
		return exitOK
	}
	switch code := exitCode(err); code {
	case exitUsage:
		fmt.Fprintf(a.env.Stderr, "%s: %s\nusage: %s ADDR MNT [-o OPTIONS]\n", mountHelper, plainError(err), mountHelper)
		return exitFailed
	default:
		if _, silent := err.(errSilent); !silent {
			fmt.Fprintf(a.env.Stderr, "%s: %s\n", mountHelper, plainError(err))
		}
		return exitMountFailed
	}
}

func (a *app) parseHelperArgs(args []string) (addr, mnt string, flags mountFlags, fake bool, err error) {
	var words []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if !strings.HasPrefix(arg, "-") {
			words = append(words, arg)
			continue
		}
		for _, f := range arg[1:] {
			switch f {
			case 'f':
				fake = true
			case 'v':
				a.verbose++
			case 's', 'n': // sloppy options; no mtab: there is none
			case 'o', 'N', 't':
				i++
				if i == len(args) {
					return "", "", flags, false, usagef("-%c wants a value", f)
				}
				if f == 'o' {
					flags.options = append(flags.options, args[i])
				}
			default:
				return "", "", flags, false, usagef("unknown flag -%c", f)
			}
		}
	}
	if len(words) != 2 {
		return "", "", flags, false, usagef("takes ADDR and MNT")
	}
	return words[0], words[1], flags, fake, nil
}
