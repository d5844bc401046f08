package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// bench is what suites share: the server, and the figures they report.
type bench struct {
	server  *pgtest.Server
	quick   bool
	parts   []string // of the engine's suite; none: all
	profile string   // path of the CPU profile; "": none
	results []result
}

type result struct {
	name  string
	value float64
	unit  string
	what  string
}

// span is how long to measure: a fifth when quick.
func (b *bench) span(full time.Duration) time.Duration {
	if b.quick {
		return full / 5
	}
	return full
}

func (b *bench) report(name string, value float64, unit, what string) {
	b.results = append(b.results, result{name, value, unit, what})
}

func (b *bench) print(w io.Writer) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight|tabwriter.DiscardEmptyColumns)
	for _, r := range b.results {
		_, _ = fmt.Fprintf(table, "%s\t%.4g\t %s\t\n", r.what, r.value, r.unit) // a lost line shows on the screen
	}
	_ = table.Flush() // as above
	for _, r := range b.results {
		_, _ = fmt.Fprintf(w, "RESULT %s %.4g %s\n", r.name, r.value, r.unit) // as above
	}
}

// percentile returns the value below which the share p of samples lies, in milliseconds.
func percentile(samples []time.Duration, p float64) float64 {
	if len(samples) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(samples))
	return sorted[min(int(p*float64(len(sorted))), len(sorted)-1)].Seconds() * 1000
}
