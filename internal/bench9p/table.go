package bench9p

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// table is the result of one shape over one network.
type table struct {
	o       options
	network string
	shape   shape
	lines   []tableLine
}

type tableLine struct {
	row     row
	samples []sample // by server
}

// measure measures a row of all servers, in turns.
func (t *table) measure(r row, h *host) (err error) {
	all := make([][]sample, len(h.servers))
	for range t.o.rounds {
		for i, s := range h.servers {
			l, err := open(s, t.network, t.shape)
			if err != nil {
				return err
			}
			m, err := measure(t.o, s, l, r)
			if cerr := l.close(); err == nil {
				err = cerr
			}
			if err != nil {
				return fmt.Errorf("%s over %s, %v, %s: %w", s.kind, t.network, t.shape, r.name, err)
			}
			all[i] = append(all[i], m)
		}
	}
	line := tableLine{row: r}
	for _, m := range all {
		line.samples = append(line.samples, median(m))
	}
	t.lines = append(t.lines, line)
	return nil
}

// median is that of rates and of CPU, each by itself.
func median(m []sample) sample {
	rates, cpus := make([]float64, len(m)), make([]float64, len(m))
	for i, s := range m {
		rates[i], cpus[i] = s.rate, s.cpu
	}
	slices.Sort(rates)
	slices.Sort(cpus)
	return sample{rates[len(m)/2], cpus[len(m)/2]}
}

// print writes rates and CPU per round, each with its ratio to the first
// server's.
func (t *table) print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "%s, %d x %d in flight", t.network, t.shape.conns, t.shape.depth)
	for i, k := range t.o.servers {
		fmt.Fprintf(tw, "\t%s/s", k)
		if i > 0 {
			fmt.Fprint(tw, "\t")
		}
		fmt.Fprint(tw, "\tCPU")
		if i > 0 {
			fmt.Fprint(tw, "\t")
		}
	}
	fmt.Fprintln(tw, "\t")
	for _, l := range t.lines {
		name := l.row.name
		if l.row.data {
			name += ", MiB"
		}
		fmt.Fprint(tw, name)
		base := l.samples[0]
		for i, s := range l.samples {
			fmt.Fprintf(tw, "\t%.0f", s.rate)
			if i > 0 {
				fmt.Fprintf(tw, "\tx%.2f", s.rate/base.rate)
			}
			fmt.Fprintf(tw, "\t%.1fµs", s.cpu/1e3)
			if i > 0 {
				fmt.Fprintf(tw, "\tx%.2f", s.cpu/base.cpu)
			}
		}
		fmt.Fprintln(tw, "\t")
	}
	fmt.Fprintln(tw)
	return tw.Flush()
}
