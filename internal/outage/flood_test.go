package outage

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestAFloodIsAFewLinesAndOneCountAMinute(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log logText
		f := NewFlood(slog.New(slog.NewTextHandler(&log, nil)), "and more", 3)
		defer f.Close()
		passed := func(kind string, events int) (n int) {
			for range events {
				if f.Pass(kind, "kind", kind) {
					n++
				}
			}
			return n
		}
		minute := func() string {
			log.Reset()
			time.Sleep(time.Minute + time.Second)
			synctest.Wait()
			return log.String()
		}
		if a, b := passed("a", 1000), passed("b", 2); a != 3 || b != 2 {
			t.Errorf("%d and %d lines pass, want 3 of the many and both of the few", a, b)
		}
		if said := minute(); strings.Count(said, "and more") != 1 || !strings.Contains(said, "count=997 kind=a") {
			t.Errorf("at the end of the minute it says %q", said)
		}
		if a, b := passed("a", 10), passed("b", 10); a != 1 || b != 3 {
			t.Errorf("in the next minute %d and %d lines pass, want one of the flood that lasts, and 3", a, b)
		}
		if said := minute(); !strings.Contains(said, "count=9 kind=a") || !strings.Contains(said, "count=7 kind=b") {
			t.Errorf("it says %q", said)
		}
		if said := minute(); said != "" {
			t.Errorf("after a quiet minute it says %q", said)
		}
		minute()
		if a := passed("a", 1000); a != 3 {
			t.Errorf("after the flood %d lines pass, want 3", a)
		}
		log.Reset()
		f.Close()
		if said := log.String(); !strings.Contains(said, "count=997 kind=a") {
			t.Errorf("when it is closed it says %q", said)
		}
	})
}

func TestAFloodThatSaysNothingNewIsOneLineAndThenCounts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log logText
		f := NewFlood(slog.New(slog.NewTextHandler(&log, nil)), "and more", 1).Once()
		defer f.Close()
		lines := 0
		for minute := range 5 {
			for range 100 {
				if f.Pass("") {
					lines++
				}
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			if counts := strings.Count(log.String(), "and more"); lines != 1 || counts != minute+1 {
				t.Fatalf("after %d minutes there are %d lines and %d counts, want 1 and one for each", minute+1, lines, counts)
			}
		}
		time.Sleep(2 * time.Minute)
		if synctest.Wait(); !f.Pass("") {
			t.Error("what comes after quiet minutes has no line")
		}
	})
}

// logText collects lines, of any goroutine.
type logText struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logText) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

func (l *logText) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Reset()
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func TestAFloodOfKindsIsBounded(t *testing.T) {
	t.Parallel()
	var log logText
	f := NewFlood(slog.New(slog.NewTextHandler(&log, nil)), "and more", 1)
	passed := 0
	for i := range 10 * maxKinds {
		if f.Pass(fmt.Sprint(i), "kind", i) {
			passed++
		}
	}
	if passed != maxKinds+1 || len(f.kinds) != maxKinds+1 {
		t.Errorf("%d lines of %d kinds pass, %d kinds are kept", passed, 10*maxKinds, len(f.kinds))
	}
	f.Close()
	if !strings.Contains(log.String(), fmt.Sprintf("count=%d", 9*maxKinds-1)) {
		t.Errorf("it says %q", log.String())
	}
}
