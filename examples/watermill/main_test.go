package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// screen collects what is printed, and calls seen after every write with all of it.
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

// testLog puts what Watermill and Romancy log into the test's output.
func testLog(t *testing.T) *slog.Logger {
	t.Helper()
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

func TestBoxOfficePassesEveryCheck(t *testing.T) {
	t.Parallel()
	out := &screen{}
	passed, err := run(t.Context(), out, testLog(t))
	if err != nil || !passed {
		t.Fatalf("passed %t, error %v\n%s", passed, err, out)
	}
	for _, want := range []string{
		"2 seats booked, 1 confirmed", "6 seats booked, 6 confirmed", "4 got one and sent a ticket, 2 gave the seat back",
		"ok      bookings: map[paid:4 released:2]\n", "ok      outbox: attempts refused by the broker: 1\n", "ok      seat plan: [1 2 11 12 13 14]\n",
		"ok      romancy_outbox_pending: 18\n", "\nall checks passed\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in what is printed:\n%s", want, out)
		}
	}
}

func TestInterruptionLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	if err := os.Chmod(dir, 0o755); err != nil { // the server's user must be able to enter
		t.Fatal(err)
	}
	for _, moment := range []string{"The application as it was", "With Romancy added"} {
		ctx, interrupt := context.WithCancelCause(t.Context())
		out := &screen{seen: func(text string) {
			if strings.Contains(text, moment) {
				interrupt(errInterrupted)
			}
		}}
		passed, err := run(ctx, out, testLog(t))
		if passed || !errors.Is(err, errInterrupted) && !errors.Is(err, context.Canceled) {
			t.Errorf("passed %t, error %v; want the interruption\n%s", passed, err, out)
		}
		interrupt(nil)
	}
	left, err := filepath.Glob(filepath.Join(dir, "romancy-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

func TestChecksSayWhatIsMissing(t *testing.T) {
	t.Parallel()
	out := &screen{}
	c := check{out: out}
	after{}.check(&c)
	if c.failed < 20 {
		t.Errorf("%d checks fail when nothing has happened, want nearly all:\n%s", c.failed, out)
	}
	for _, want := range []string{
		"FAILED  tickets: got 0, want 4\n", "FAILED  Prometheus: messages of on_timer: got 0, want at least 1\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
}

func TestForeignPayloadIsAnErrorForTheRouter(t *testing.T) {
	t.Parallel()
	handle := on(func(bus.OutboxPending) { t.Error("a foreign payload was taken for an event") })
	var wrong *bus.PayloadError
	if err := handle(message.NewMessage("1", []byte("hello"))); !errors.As(err, &wrong) {
		t.Errorf("got %v, want a *bus.PayloadError", err)
	}
}
