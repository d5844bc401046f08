package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if description := os.Getenv(workerVariable); description != "" {
		systems["idle"] = func(context.Context, assignment) (system, error) { return idleSystem{}, nil }
		systems["broken"] = func(context.Context, assignment) (system, error) { return nil, errors.New("no database") }
		if err := serveWorker(description); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// idleSystem needs no database.
type idleSystem struct{}

func (idleSystem) fiveSteps(context.Context) error { return errors.New("no steps here") }
func (idleSystem) startReceiver(_ context.Context, messages int) (string, error) {
	return fmt.Sprintf("receiver of %d", messages), nil
}
func (idleSystem) send(context.Context, string, int) error { return nil }
func (idleSystem) startSleeper(_ context.Context, sleep time.Duration) error {
	observed.lateness <- -sleep // early
	return nil
}
func (idleSystem) stop(context.Context) error { return nil }

func spawnIdle(t *testing.T) *process {
	t.Helper()
	p, err := spawn(t.Context(), assignment{System: "idle"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	return p
}

func TestWorkerProcessAnswersOrders(t *testing.T) {
	t.Parallel()
	p := spawnIdle(t)
	id, err := call[string](t.Context(), p, "receiver", 7)
	if err != nil || id != "receiver of 7" {
		t.Errorf("got %q, %v", id, err)
	}
	if _, err := call[string](t.Context(), p, "crowd", 7); err == nil || !strings.Contains(err.Error(), "does not take this order") {
		t.Errorf("an order for the other system: got %v", err)
	}
	if _, err := call[[]time.Duration](t.Context(), p, "timers", timersOrder{Runs: 1, Sleep: time.Second, Every: time.Millisecond}); err == nil ||
		!strings.Contains(err.Error(), "early") {
		t.Errorf("a timer a second early: got %v", err)
	}
	if err := p.stop(t.Context()); err != nil {
		t.Errorf("stop: %v", err)
	}
}

func TestWorkerProcessThatDoesNotStartSaysWhy(t *testing.T) {
	t.Parallel()
	for system, want := range map[string]string{"broken": "no database", "unknown": "it ended"} {
		if p, err := spawn(t.Context(), assignment{System: system}); err == nil || !strings.Contains(err.Error(), want) {
			p.kill()
			t.Errorf("%s: got %v, want %q in it", system, err, want)
		}
	}
}

func TestOrderToKilledWorkerFails(t *testing.T) {
	t.Parallel()
	p := spawnIdle(t)
	p.kill()
	if _, err := call[string](t.Context(), p, "receiver", 1); err == nil {
		t.Error("a dead process answered")
	}
}

func TestWorkerProcessEndsWithWhoeverStartedIt(t *testing.T) {
	t.Parallel()
	p := spawnIdle(t)
	// What the end of this process would do to the pipe, however it ends.
	if err := p.input.Close(); err != nil {
		t.Fatal(err)
	}
	var outlived atomic.Bool
	limit := time.AfterFunc(30*time.Second, func() {
		outlived.Store(true)
		_ = p.command.Process.Kill()
	})
	err := p.command.Wait()
	p.ended = true
	limit.Stop()
	if outlived.Load() {
		t.Error("it outlived its standard input")
	}
	if err == nil {
		t.Error("it ended as if it had been told to")
	}
}

func TestSitesTakeTurnsToBegin(t *testing.T) {
	t.Parallel()
	sites := []*site{{label: "a"}, {label: "b"}}
	var order []string
	if err := takeTurns(3, sites, func(round int, s *site) error {
		order = append(order, fmt.Sprint(round, s.label))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"0a", "0b", "1b", "1a", "2a", "2b"}; !reflect.DeepEqual(order, want) {
		t.Errorf("got %v, want %v", order, want)
	}
}

func TestRatiosAreTakenRoundByRound(t *testing.T) {
	t.Parallel()
	ours := loads{500: {{PerSecond: 100}, {PerSecond: 10}, {PerSecond: 60}}}
	theirs := loads{20: {{PerSecond: 10}, {PerSecond: 1}, {PerSecond: 4}}, 50: {{PerSecond: 5}, {PerSecond: 2}, {PerSecond: 3}}}
	best := theirs.best()
	if want := []float64{10, 2, 4}; !reflect.DeepEqual(best, want) {
		t.Errorf("best of each round: got %v, want %v", best, want)
	}
	if got := median(ratios(ours.perSecond(500), best)); got != 10 { // of 10, 5 and 15
		t.Errorf("median of the ratios: got %v, want 10", got)
	}
	if got := median([]float64{4, 1, 3, 2}); got != 2.5 {
		t.Errorf("median of an even number: got %v, want 2.5", got)
	}
}

func TestTakingTooManyIsNoticed(t *testing.T) {
	t.Parallel()
	from := make(chan int, 3)
	from <- 1
	from <- 2
	from <- 3
	if _, err := take(from, 2, time.Second); err == nil {
		t.Error("a third value went unnoticed")
	}
	if _, err := take(from, 2, time.Millisecond); err == nil {
		t.Error("a missing value went unnoticed")
	}
}

func TestEachReportsHowManyFailed(t *testing.T) {
	t.Parallel()
	odd := errors.New("odd")
	err := each(10, 3, func(i int) error {
		if i%2 == 1 {
			return odd
		}
		return nil
	})
	if !errors.Is(err, odd) || !strings.Contains(err.Error(), "5 of 10") {
		t.Errorf("got %v", err)
	}
}
