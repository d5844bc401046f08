package main

import (
	"fmt"
	"io"
	"strings"
)

// checks are what must hold. Each is printed with what was found and what had to be.
type checks struct {
	out    io.Writer
	failed int
}

func (c *checks) note(ok bool, what string, got, want any) {
	if ok {
		fmt.Fprintf(c.out, "  ok      %s: %s\n", what, readable(got))
		return
	}
	c.failed++
	fmt.Fprintf(c.out, "  FAILED  %s: got %s, want %s\n", what, readable(got), readable(want))
}

func same[T comparable](c *checks, what string, got, want T) { c.note(got == want, what, got, want) }

func (c *checks) atLeast(what string, got, want int) {
	c.note(got >= want, what, got, fmt.Sprintf("at least %d", want))
}

// none holds if the list of exceptions is empty.
func (c *checks) none(what string, exceptions []string) {
	if len(exceptions) == 0 {
		c.note(true, what, 0, 0)
		return
	}
	shown := exceptions[:min(len(exceptions), 5)]
	c.note(false, what, fmt.Sprintf("%d (%s)", len(exceptions), strings.Join(shown, "; ")), 0)
}

// readable writes large numbers in groups of three digits.
func readable(value any) string {
	text := fmt.Sprint(value)
	switch value.(type) {
	case int, int64:
	default:
		return text
	}
	for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// Known figures of the whole file, computed independently of this program.
const (
	allOrders        = 830
	allShipped       = 809
	allCompensated   = 21
	allApprovals     = 31
	allChargedCents  = 126_579_264
	allRefundedCents = 2_593_741
	allKeptCents     = 123_985_523
	allRefusedUnits  = 1_198
)

// checkRuns checks what the tables say about the runs, the money and the stock.
func (c *checks) checkRuns(got facts, want expectation, said starterReport) {
	if want.runs == allOrders {
		known := [...]int64{allShipped, allCompensated, allApprovals, allChargedCents, allRefundedCents, allRefusedUnits}
		computed := [...]int64{
			int64(want.shipped), int64(want.compensated), int64(want.approvals), want.chargedCents, want.refundedCents, int64(want.refusedUnits),
		}
		same(c, "expectations computed from the file are the known ones", computed, known)
		same(c, "cents kept are the known ones", got.chargedCents-got.refundedCents, int64(allKeptCents))
	}
	same(c, "messages that started a run", said.Started, want.runs)
	same(c, "messages that found their run started", said.Existing, (copiesOfOrder-1)*want.runs)
	same(c, "runs ended", got.ended, want.runs)
	same(c, "shipped", got.shipped, want.shipped)
	same(c, "shipments", got.shipments, want.shipped)
	same(c, "compensated, because the carrier refused", got.compensated, want.compensated)
	c.none("runs that ended otherwise than their order says", got.wrongStatus)
	same(c, "approvals received", got.approvals, want.approvals)

	same(c, "cents charged", got.chargedCents, want.chargedCents)
	same(c, "cents refunded", got.refundedCents, want.refundedCents)
	same(c, "cents kept", got.chargedCents-got.refundedCents, want.chargedCents-want.refundedCents)
	same(c, "orders charged", got.charged, want.runs)
	same(c, "orders refunded", got.refunded, want.compensated)
	same(c, "orders charged or refunded twice", got.chargedAgain, 0)

	c.none(fmt.Sprintf("of %d products, those with a wrong stock", len(want.stock)), got.wrongStock)
	same(c, "orders reserved", got.reservations, want.runs)
	same(c, "lines reserved", got.reservedLines, want.lines)
	same(c, "orders restocked", got.ordersRestocked, want.compensated)
	same(c, "units restocked", got.restockedUnits, want.refusedUnits)

	same(c, "steps recorded twice", got.recordedTwice, 0)
	same(c, "steps not recorded", got.stepsMissing, 0)
	c.none("runs whose history is not what their order asks for", got.wrongHistory)
}

// checkEvents checks what NATS received.
func (c *checks) checkEvents(got delivery, want expectation, tables facts) {
	same(c, "events received by NATS", got.messages-got.duplicates-len(got.unexpected), len(want.events))
	c.none("events missing", got.missing)
	c.none("events that nobody emitted", got.unexpected)
	c.none("events before an earlier one of their customer", got.outOfOrder)
	c.none(fmt.Sprintf("of %d messages that repeat an event, those not explained by the killed worker", got.duplicates), got.unexplained)
	same(c, "events left in the outbox", tables.outboxPending, 0)
	same(c, "dead letters", tables.outboxDead, 0)
}

// manyApprovals are so many that some are in their mailboxes, where they stay for a fifth of a second, whenever somebody looks.
const manyApprovals = 20

// checkWorld checks that what had to be broken was broken, and what the desk has seen.
func (c *checks) checkWorld(said deskReport, channels []string, f faults, want expectation, notify bool) {
	c.note(f.killed != "" && f.endedBefore < want.runs, "runs that had ended when a worker was killed", f.endedBefore,
		fmt.Sprintf("fewer than %d", want.runs))
	if notify {
		c.atLeast("LISTEN sessions terminated", f.listenersEnded, 1)
		c.atLeast("times the desk has connected again", int(said.Reconnects), 1)
	} else {
		same(c, "LISTEN sessions, with notifications off", f.listenersEnded, 0)
	}
	c.atLeast("approvals sent by the desk", said.Approvals, want.approvals)
	for _, channel := range channels {
		if notify {
			c.atLeast("notifications on "+channel, said.Notified[channel], 1)
			continue
		}
		if want.approvals >= manyApprovals || !strings.HasSuffix(channel, "_channel_message") {
			c.atLeast("messages on "+channel+", by looking", said.CaughtUp[channel], 1)
		}
		same(c, "notifications on "+channel, said.Notified[channel], 0)
	}
}
