package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
)

func TestMain(m *testing.M) {
	if isChild(os.Args) { // the demo starts this program again, which here is the test binary
		os.Exit(childMain(os.Args[1]))
	}
	os.Exit(pgtest.Main(m))
}

// screen collects what the demo prints, and calls seen after every write with all of it.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
	seen func(text string)
}

func (s *screen) Write(text []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.text.Write(text)
	if s.seen != nil {
		s.seen(s.text.String())
	}
	return n, err
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// shortDemo is a number of orders with which the demo has everything: 20 of the last 64 are refused, five need an approval.
const shortDemo = 64

func TestShortDemoPassesEveryCheck(t *testing.T) {
	for _, notify := range []bool{true, false} {
		t.Run(fmt.Sprintf("notify=%t", notify), func(t *testing.T) {
			out := &screen{}
			passed, err := runDemo(t.Context(), settings{orders: shortDemo, notify: notify, out: out})
			if err != nil || !passed {
				t.Fatalf("passed %t, error %v\n%s", passed, err, out)
			}
			for _, want := range []string{
				"** worker-1 is killed", "LISTEN sessions are terminated", "RESULT demo_runs_ended 64 runs\n", "RESULT demo_shipped 44 runs\n",
				"RESULT demo_compensated 20 runs\n", "RESULT demo_events_missing 0 events\n", "RESULT demo_recorded_twice 0 steps\n",
			} {
				if !strings.Contains(out.String(), want) {
					t.Errorf("no %q in what the demo prints:\n%s", want, out)
				}
			}
		})
	}
}

func TestInterruptedDemoLeavesNothing(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	// The server's user must be able to enter.
	if err := os.Chmod(os.Getenv("TMPDIR"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, interrupt := context.WithCancelCause(t.Context())
	defer interrupt(nil)
	out := &screen{seen: func(text string) {
		if strings.Contains(text, " runs ended") {
			interrupt(errInterrupted)
		}
	}}
	passed, err := runDemo(ctx, settings{orders: shortDemo, notify: true, keep: true, out: out})
	if passed || !errors.Is(err, errInterrupted) {
		t.Fatalf("passed %t, error %v; want the interruption\n%s", passed, err, out)
	}
	left, err := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), "romancy-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

func TestChildThatCannotStartSaysWhy(t *testing.T) {
	t.Parallel()
	config := childConfig{Name: "worker-9", Database: "postgres://nobody@127.0.0.1:1/nothing", NATS: "nats://127.0.0.1:1"}
	_, err := spawn(t.Context(), roleWorker, config, t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "worker-9 ended before its time") || !strings.Contains(err.Error(), "no servers available") {
		t.Errorf("got %v, want the child's own words", err)
	}
}

func TestWholeFileGivesTheKnownFigures(t *testing.T) {
	t.Parallel()
	orders, err := loadOrders(0)
	if err != nil {
		t.Fatal(err)
	}
	products, err := loadProducts()
	if err != nil {
		t.Fatal(err)
	}
	want := expect(orders, products)
	got := fmt.Sprint(want.runs, want.shipped, want.compensated, want.approvals, want.chargedCents, want.refundedCents, want.refusedUnits, want.lines, len(want.stock))
	if known := "830 809 21 31 126579264 2593741 1198 2155 77"; got != known {
		t.Errorf("got %s, want %s", got, known)
	}
	if got := want.chargedCents - want.refundedCents; got != allKeptCents {
		t.Errorf("kept: got %d, want %d", got, allKeptCents)
	}
}

func TestMistakesOnTheCommandLine(t *testing.T) {
	t.Parallel()
	set := settings{orders: -1}
	err := set.complete("maybe", []string{"extra"})
	for _, want := range []string{"-notify=maybe", "-orders -1", `"extra"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s in it", err, want)
		}
	}
	if _, err := loadOrders(831); err == nil || !strings.Contains(err.Error(), "830") {
		t.Errorf("831 orders give %v, want the number there are", err)
	}
}

func TestStreamIsComparedWithWhatHadToCome(t *testing.T) {
	t.Parallel()
	shipped := "1997-01-01"
	first, second := Order{ID: 1, CustomerID: "A", ShippedDate: &shipped}, Order{ID: 2, CustomerID: "A"}
	want := expect([]Order{first, second}, nil)
	kill := time.Now()
	at := func(order Order, topic string, number, seconds int) received {
		event := OrderEvent{OrderID: order.ID, RunID: order.RunID(), CustomerID: order.CustomerID, Number: number}
		return received{id: eventID(order, topic), topic: topic, event: event, payload: fmt.Append(nil, event), at: kill.Add(time.Duration(seconds) * time.Second)}
	}
	good := []received{
		at(first, topicPlaced, 1, -4), at(second, topicPlaced, 2, -3), at(first, topicShipped, 3, -2), at(second, topicCompensated, 4, -1),
	}
	with := func(change func(messages []received) []received) []received { return change(slices.Clone(good)) }
	for name, c := range map[string]struct {
		messages []received
		want     string // missing, unexpected, out of order, duplicates, unexplained
	}{
		"all is well": {good, "0 0 0 0 0"},
		"missing":     {good[:3], "1 0 0 0 0"},
		"before an earlier one": {with(func(m []received) []received {
			m[1], m[2] = m[2], m[1]
			return m
		}), "0 0 3 0 0"},
		"repeated across the kill":    {append(slices.Clone(good), at(second, topicCompensated, 4, +5)), "0 0 0 1 0"},
		"repeated before the kill":    {with(func(m []received) []received { return slices.Insert(m, 2, m[1]) }), "0 0 0 1 1"},
		"repeated with other content": {append(slices.Clone(good), at(second, topicCompensated, 5, +5)), "0 0 0 1 1"},
		"emitted by nobody":           {append(slices.Clone(good), at(second, topicShipped, 5, +5)), "0 1 0 0 0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := compareStream(c.messages, want, kill)
			if got := fmt.Sprint(len(d.missing), len(d.unexpected), len(d.outOfOrder), d.duplicates, len(d.unexplained)); got != c.want {
				t.Errorf("got %s, want %s (missing, unexpected, out of order, duplicates, unexplained)", got, c.want)
			}
		})
	}
}

func TestChecksSayWhatWasFound(t *testing.T) {
	t.Parallel()
	out := &screen{}
	c := &checks{out: out}
	same(c, "cents", int64(1_234_567), int64(-1_000))
	same(c, "orders", 830, 830)
	c.none("wrong", []string{"product 7"})
	if c.failed != 2 {
		t.Errorf("%d checks failed, want 2", c.failed)
	}
	want := "  FAILED  cents: got 1,234,567, want -1,000\n  ok      orders: 830\n  FAILED  wrong: got 1 (product 7), want 0\n"
	if out.String() != want {
		t.Errorf("got:\n%swant:\n%s", out, want)
	}
}

func TestQuantile(t *testing.T) {
	t.Parallel()
	s := sample{4, 1, 3, 2}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 2, 0.99: 4, 1: 4} {
		if got := s.quantile(q); got != want {
			t.Errorf("quantile %v is %d, want %d", q, got, want)
		}
	}
	if got := (sample{}).quantile(0.5); got != 0 {
		t.Errorf("the quantile of nothing is %d, want 0", got)
	}
}
