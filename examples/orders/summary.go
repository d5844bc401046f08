package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/romancy-go/romancy/bus"
)

// outcome is everything that was found out.
type outcome struct {
	tables  facts
	stream  delivery
	late    latencies
	reports reports
}

// judge finds out what happened, prints it, and reports whether every check held.
func (d *demo) judge(ctx context.Context, said reports) (passed bool, err error) {
	want := expect(d.all, d.products)
	found := outcome{reports: said}
	if found.tables, err = readFacts(ctx, d.pool, want); err != nil {
		return false, err
	}
	messages, err := readStream(ctx, d.broker.url)
	if err != nil {
		return false, err
	}
	found.stream = compareStream(messages, want, d.faults.killedAt)
	if found.late, err = measure(ctx, d.pool, d.faults); err != nil {
		return false, err
	}

	d.printSummary(found)
	fmt.Fprintln(d.out, "\nChecks, from the tables and from what JetStream has stored:")
	c := &checks{out: d.out}
	c.checkRuns(found.tables, want, said.starter)
	c.checkEvents(found.stream, want, found.tables)
	c.checkWorld(said.desk, bus.ChannelsFor("romancy").All(), d.faults, want, d.notify)
	if c.failed > 0 {
		fmt.Fprintf(d.out, "\n%d checks FAILED. With -keep, the database and the processes' logs stay.\n", c.failed)
	} else {
		fmt.Fprintln(d.out, "\nAll checks passed.")
	}
	d.printResults(found)
	return c.failed == 0, nil
}

func (d *demo) printSummary(found outcome) {
	fmt.Fprintln(d.out)
	table := tabwriter.NewWriter(d.out, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(table, "  %s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	tables, stream, late := found.tables, found.stream, found.late
	row("runs ended", "%d in %.1f s", tables.ended, d.took.Seconds())
	row("shipped", "%d (%s)", tables.shipped, shares(tables.byWorker))
	row("compensated", "%d, their money refunded and their units back in stock", tables.compensated)
	row("charged, refunded, kept", "%s, %s, %s", money(tables.chargedCents), money(tables.refundedCents), money(tables.chargedCents-tables.refundedCents))
	row("failed attempts, retried", "%d; %d payments asked for twice, made once", tables.failedAttempts, tables.answersLost)
	row("approvals", "%d sent to waiting runs", found.reports.desk.Approvals)
	row("events to NATS", "%d messages, %d repeated, up to %d for one customer in order", stream.messages, stream.duplicates, stream.mostOfAnyKey)
	row("notifications seen", "%s", shares(found.reports.desk.Notified))
	row("found by looking", "%s", shares(found.reports.desk.CaughtUp))
	row("killed worker", "%d of its runs shipped by others, the last %.1f s after the kill", late.tookOver, late.resumed.Seconds())
	row("message to next line", "p50 %s ms, p99 %s ms (%d)", milliseconds(late.wake.quantile(0.5)), milliseconds(late.wake.quantile(0.99)), len(late.wake))
	row("timer late by", "p50 %s ms, p99 %s ms (%d)", milliseconds(late.timer.quantile(0.5)), milliseconds(late.timer.quantile(0.99)), len(late.timer))
	for _, name := range slices.Sorted(maps.Keys(found.reports.workers)) {
		engine := found.reports.workers[name].Engine
		row(name, "%d operations in %d commits; %d resumptions in memory, %d runs replayed", engine.Operations, engine.Commits, engine.Resumed, engine.Replayed)
	}
	_ = table.Flush() // as any other printing
}

// printResults prints the figures for machines.
func (d *demo) printResults(found outcome) {
	tables, stream, late := found.tables, found.stream, found.late
	result := func(name string, value any, unit string) {
		fmt.Fprintf(d.out, "RESULT demo_%s %v %s\n", name, value, unit)
	}
	fmt.Fprintln(d.out)
	result("runs_ended", tables.ended, "runs")
	result("shipped", tables.shipped, "runs")
	result("compensated", tables.compensated, "runs")
	result("events_missing", len(stream.missing), "events")
	result("events_duplicated", stream.duplicates, "events")
	result("recorded_twice", tables.recordedTwice, "steps")
	result("seconds", fmt.Sprintf("%.1f", d.took.Seconds()), "s")
	if len(late.wake) > 0 {
		result("wake_p50", milliseconds(late.wake.quantile(0.5)), "ms")
		result("wake_p99", milliseconds(late.wake.quantile(0.99)), "ms")
	}
	if len(late.timer) > 0 {
		result("timer_p50", milliseconds(late.timer.quantile(0.5)), "ms")
		result("timer_p99", milliseconds(late.timer.quantile(0.99)), "ms")
	}
}

// shares prints counts by name, without the prefix of the notification channels.
func shares(counts map[string]int) string {
	parts := make([]string, 0, len(counts))
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", strings.TrimPrefix(name, "romancy_"), counts[name]))
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}

func money(cents int64) string { return fmt.Sprintf("%s.%02d", readable(cents/100), cents%100) }
