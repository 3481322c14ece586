package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// syncEvery is how often a replica that is waited for is asked.
const syncEvery = 50 * time.Millisecond

// syncReplica asks the process that keeps a replica whether that is what its
// master has.
func (a *app) syncReplica(ctx context.Context, p place, wait bool) error {
	x, err := a.connect(ctx, p)
	if err != nil {
		return err
	}
	if x == nil {
		return &problem{Thing: p.String(), Err: errors.New("nobody keeps it"), Remedy: "start mezzo replicate", Code: exitUnreachable}
	}
	defer x.Close()
	tick := time.NewTicker(syncEvery)
	defer tick.Stop()
	for {
		var text bytes.Buffer
		if err := readWhole(ctx, x, "status", &text); err != nil {
			return &problem{Thing: p.String(), Err: err}
		}
		lines := statusLines(text.String())
		switch {
		case first(lines["equal"]) == "":
			return &problem{Thing: p.String(), Err: errors.New("is not a replica")}
		case first(lines["equal"]) == "yes":
			a.out("equal to %s at %s\n", first(lines["upstream"]), first(lines["end"]))
			return nil
		case !wait || stuck(lines):
			return &problem{Thing: p.String(), Err: errors.New(notEqual(lines))}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// statusLines takes a status apart.
func statusLines(text string) map[string][]string {
	m := map[string][]string{}
	for _, line := range strings.Split(text, "\n") {
		if k, v, ok := strings.Cut(line, ": "); ok {
			m[k] = append(m[k], v)
		}
	}
	return m
}

// stuck reports whether nothing but what fails is left to be done.
func stuck(lines map[string][]string) bool {
	return first(lines["state"]) == "connected" && first(lines["end"]) == first(lines["master_end"]) && first(lines["troubles"]) != "0" &&
		first(lines["wanted"]) == first(lines["failed_wants"])
}

// notEqual says why a replica is not what its master has, by name.
func notEqual(lines map[string][]string) string {
	why := []string{fmt.Sprintf("not equal to its master: %s, at %s of %s", first(lines["state"]), first(lines["end"]), first(lines["master_end"]))}
	if n := first(lines["wanted"]); n != "0" && n != "" {
		why = append(why, n+" files on their way")
	}
	why = append(why, lines["why"]...)
	for i, t := range lines["trouble"] {
		if i == 10 {
			why = append(why, "...")
			break
		}
		why = append(why, t)
	}
	return strings.Join(why, "; ")
}
