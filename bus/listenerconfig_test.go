package bus

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

func TestAListenersConfigurationShowsNoPassword(t *testing.T) {
	t.Parallel()
	pool, err := pgxpool.New(t.Context(), "postgres://me:hunter2@localhost:1/shop")
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	cfg := ListenerConfig{ListenURL: "postgres://me:hunter2@localhost:6543/shop?sslpassword=hunter2", Pool: pool, SilenceLimit: time.Minute}
	listener, err := NewListener(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	for _, handler := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		slog.New(handler).Info("configured", "config", cfg, "pointer", &cfg, "listener", listener, "status", listener.Status())
	}
	printed := log.String()
	for _, value := range []any{cfg, &cfg, listener, struct{ Config ListenerConfig }{cfg}, NotifierConfig{Pool: pool}, SubscriberConfig{Pool: pool, Listener: listener}, PublisherConfig{}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d"} {
			printed += fmt.Sprintf(verb+"\n", value)
		}
	}
	for _, value := range []any{cfg, &cfg, listener, struct{ Config ListenerConfig }{cfg}, listener.Status()} {
		text, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		printed += string(text)
	}
	if strings.Contains(printed, "hunter2") {
		t.Errorf("the password is printed:\n%s", printed)
	}
	if !strings.Contains(printed, "ListenURL:postgres://me@localhost:6543/shop") || !strings.Contains(printed, "SilenceLimit:1m0s") {
		t.Errorf("the rest is not:\n%s", printed)
	}
	_, err = NewListener(ListenerConfig{ListenURL: "postgres://me:hunter2@hunter2@localhost/shop"})
	if err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "%40") {
		t.Errorf("an unescaped @ is answered with: %v", err)
	}
}

func TestTheLastErrorOfAListenerShowsNoPassword(t *testing.T) {
	t.Parallel()
	const url = "postgres://me:hunter2@127.0.0.1:1/shop?sslmode=disable"
	for name, cfg := range map[string]ListenerConfig{
		"a URL":      {ListenURL: url},
		"a function": {Connect: func(ctx context.Context) (*pgx.Conn, error) { return pgx.Connect(ctx, url) }},
		"a bad one of it": {Connect: func(ctx context.Context) (*pgx.Conn, error) {
			return pgx.Connect(ctx, "postgres://me:hunter2@x:hunter2/shop")
		}},
	} {
		var log logbook
		cfg.Logger = log.logger()
		listener, err := NewListener(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := listener.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it has failed", func() bool { return listener.Status().LastError != nil })
		status := listener.Status()
		if err := listener.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(status) //nolint:musttag // whatever it would be printed as
		if err != nil || strings.Contains(string(text), `"LastError":{`) {
			t.Errorf("%s: JSON of the status is %s (%v)", name, text, err)
		}
		if shown := fmt.Sprintf("%s %v %+v %#v %s", text, status, status, status, log.String()); strings.Contains(shown, "hunter2") {
			t.Errorf("%s: %s", name, shown)
		}
	}
}

func TestWeakerTLSOfTheListenURLIsOneWarning(t *testing.T) {
	t.Parallel()
	for sslmode, want := range map[string]int{"disable": 1, "prefer": 1, "require": 0} {
		pool, err := pgxpool.New(t.Context(), "postgres://me:hunter2@localhost:1/shop?sslmode=require")
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		var log logbook
		listener, err := NewListener(ListenerConfig{
			Pool: pool, ListenURL: "postgres://me:hunter2@localhost:1/shop?sslmode=" + sslmode, Logger: slog.New(slog.NewTextHandler(&log, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := listener.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := listener.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := strings.Count(log.String(), "weaker TLS"); got != want || strings.Contains(log.String(), "hunter2") {
			t.Errorf("sslmode=%s: %d warnings, want %d:\n%s", sslmode, got, want, log.String())
		}
	}
}
