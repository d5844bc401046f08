package pgtest_test

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/pgtest"
)

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	})
	return conn
}

func TestProxyForwards(t *testing.T) {
	t.Parallel()
	proxy := pgtest.NewProxy(t, pgtest.URL(t))
	conn := connect(t, proxy.URL())
	var length int
	if err := conn.QueryRow(t.Context(), "select length(repeat('x', 1000000))").Scan(&length); err != nil || length != 1_000_000 {
		t.Errorf("got %d, %v", length, err)
	}
	var text string
	if err := conn.QueryRow(t.Context(), "select repeat('x', 1000000)").Scan(&text); err != nil || len(text) != 1_000_000 {
		t.Errorf("got %d bytes, %v", len(text), err)
	}
}

func TestProxyCutResetsConnectionsAndAcceptsNewOnes(t *testing.T) {
	t.Parallel()
	proxy := pgtest.NewProxy(t, pgtest.URL(t))
	conn := connect(t, proxy.URL())
	proxy.Cut()
	if _, err := conn.Exec(t.Context(), "select 1"); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("a cut connection gives %v, want a reset", err)
	}
	if err := connect(t, proxy.URL()).Ping(t.Context()); err != nil {
		t.Errorf("a connection made after the cut: %v", err)
	}
}

func TestProxyCutReachesAWaitingClient(t *testing.T) {
	t.Parallel()
	proxy := pgtest.NewProxy(t, pgtest.URL(t))
	conn := connect(t, proxy.URL())
	ended := make(chan error, 1)
	go func() { _, err := conn.WaitForNotification(t.Context()); ended <- err }()
	proxy.Cut()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("waiting on a cut connection ends without an error")
		}
	case <-time.After(30 * time.Second):
		t.Error("waiting on a cut connection does not end")
	}
}

func TestProxyStallIsSilenceAndResumeDelivers(t *testing.T) {
	t.Parallel()
	proxy := pgtest.NewProxy(t, pgtest.URL(t))
	listener, sender := connect(t, proxy.URL()), connect(t, proxy.URL())
	if _, err := listener.Exec(t.Context(), "listen news"); err != nil {
		t.Fatal(err)
	}
	proxy.Stall()
	sent := make(chan error, 1)
	go func() { _, err := sender.Exec(t.Context(), "notify news, 'late'"); sent <- err }()

	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := listener.WaitForNotification(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while stalled: %v, want silence", err)
	}
	select {
	case err := <-sent:
		t.Errorf("a statement ended while stalled: %v", err)
	default:
	}
	proxy.Resume()
	if err := <-sent; err != nil {
		t.Errorf("after Resume the statement failed: %v", err)
	}
	got, err := listener.WaitForNotification(t.Context())
	if err != nil || got.Payload != "late" {
		t.Errorf("after Resume: %v, %v, want what was sent while stalled", got, err)
	}
}

func TestProxyCloseEndsEvenStalledConnections(t *testing.T) {
	t.Parallel()
	proxy := pgtest.NewProxy(t, pgtest.URL(t))
	conn := connect(t, proxy.URL())
	proxy.Stall()
	go proxy.Close()
	proxy.Close()
	if _, err := conn.Exec(t.Context(), "select 1"); err == nil {
		t.Error("a connection survives Close")
	}
	if _, err := pgx.Connect(t.Context(), proxy.URL()); err == nil {
		t.Error("a closed proxy accepts connections")
	}
}
