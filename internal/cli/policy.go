package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/mezzofs/mezzo/kml/conflict"
	"github.com/mezzofs/mezzo/kml/glob"
)

func (a *app) policyCommand() *cobra.Command {
	remove := false
	c := &cobra.Command{
		Use:   "policy [WHERE] [PATTERN] [POLICY]",
		Short: "tell or change how conflicts are settled",
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case remove && len(args) != 2:
				return usagef("--remove takes WHERE and a PATTERN")
			case !remove && len(args) == 2:
				return usagef("takes a PATTERN and a POLICY, or none")
			}
			return a.policy(cmd.Context(), args)
		},
	}
	c.Flags().BoolVarP(&remove, "remove", "r", false, "take the rule of a pattern away")
	return c
}

// policy prints the rules; with a pattern it changes them.
func (a *app) policy(ctx context.Context, args []string) error {
	p, err := locate(first(args))
	if err != nil {
		return err
	}
	x, err := a.connect(ctx, p)
	if err != nil {
		return err
	}
	if x == nil {
		return &problem{Thing: p.String(), Err: errors.New("is not served"), Remedy: "start it with mezzo serve"}
	}
	defer x.Close()
	var text bytes.Buffer
	if err := readWhole(ctx, x, "policy", &text); err != nil {
		return &problem{Thing: p.String(), Err: err}
	}
	if len(args) < 2 {
		_, err := a.env.Stdout.Write(bytes.TrimLeft(text.Bytes(), "\n"))
		return err
	}
	rules, err := conflict.ParsePolicies(text.Bytes())
	if err != nil {
		return &problem{Thing: p.String(), Err: err, Remedy: "is there a newer mezzo at the master?"}
	}
	if rules, err = changePolicy(rules, args[1:]); err != nil {
		return err
	}
	out := rules.Text()
	if len(out) == 0 {
		out = []byte("# no rules: both\n")
	}
	if err := writeWhole(ctx, x, "policy", out); err != nil {
		prob := &problem{Thing: p.String(), Err: err}
		if errors.Is(err, syscall.EACCES) {
			prob.Remedy = "it takes the right admin: run it as the user who serves, or as root"
		}
		return prob
	}
	return nil
}

// changePolicy takes a rule away, or with a policy sets it.
func changePolicy(rules conflict.Policies, args []string) (conflict.Policies, error) {
	pattern := args[0]
	if len(args) == 1 {
		less := rules.Without(pattern)
		if len(less.Rules()) == len(rules.Rules()) {
			return rules, &problem{Thing: pattern, Err: errors.New("has no rule")}
		}
		return less, nil
	}
	r, err := conflict.NewRule(pattern, args[1])
	if err != nil {
		thing := args[1]
		if _, bad := glob.Parse(pattern); bad != nil {
			thing = pattern
		}
		return rules, &problem{Thing: thing, Err: err}
	}
	return rules.With(r)
}

// writeWhole replaces a file of an extension.
func writeWhole(ctx context.Context, x extension, name string, text []byte) error {
	f, err := x.open(ctx, name, true)
	if err != nil {
		return fmt.Errorf("%s/%s: %w", stateDir, name, err)
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("%s/%s: %w", stateDir, name, err)
	}
	return nil
}
