package bus

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/romancy-go/romancy/internal/pgtest"
)

func TestMain(m *testing.M) {
	// Watermill's suite joins several subscribers into one, and leaves that behind with a message that nobody reads where
	// one was delivered again at its end.
	const joined = "github.com/ThreeDotsLabs/watermill/internal/subscriber.(*multiplier).Subscribe."
	os.Exit(pgtest.Main(m, goleak.IgnoreAnyFunction(joined+"func2"), goleak.IgnoreAnyFunction(joined+"func3")))
}

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

// logbook collects log lines.
type logbook struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logbook) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logbook) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// logger returns a logger without times, so that lines can be compared.
func (b *logbook) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
}

func (b *logbook) count(text string) int { return strings.Count(b.String(), text) }

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// eventually polls what no signal tells.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s in vain until %s", patience, what)
		}
	}
}

func startListener(t testing.TB, pool *pgxpool.Pool, mod ...func(*ListenerConfig)) *Listener {
	t.Helper()
	cfg := ListenerConfig{Pool: pool, ReconnectDelay: time.Second, Logger: slog.New(slog.DiscardHandler)}
	for _, change := range mod {
		change(&cfg)
	}
	l, err := NewListener(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(within(t)); err != nil {
			t.Error(err)
		}
	})
	return l
}

func startNotifier(t testing.TB, pool *pgxpool.Pool, mod ...func(*NotifierConfig)) *Notifier {
	t.Helper()
	cfg := NotifierConfig{Pool: pool, Logger: slog.New(slog.DiscardHandler)}
	for _, change := range mod {
		change(&cfg)
	}
	n, err := NewNotifier(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close(within(t)) })
	return n
}

// subscribe returns a subscription whose channels are listened to, and whose first catch-ups are taken.
func subscribe(t testing.TB, l *Listener, buffer int, channels ...string) *Subscription {
	t.Helper()
	s, err := l.Subscribe(buffer, channels...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	for range channels {
		if n := next(t, s); !n.CatchUp {
			t.Fatalf("got %+v before the catch-up", n)
		}
	}
	return s
}

func next(t testing.TB, s *Subscription) Notification {
	t.Helper()
	n, err := s.Next(within(t))
	if err != nil {
		t.Fatalf("next notification: %v", err)
	}
	return n
}

func execute(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(within(t), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func notify(t testing.TB, pool *pgxpool.Pool, channel, payload string) {
	t.Helper()
	execute(t, pool, "select pg_notify($1::text, $2::text)", channel, payload)
}
