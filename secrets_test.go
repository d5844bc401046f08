package romancy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/outbox"
	"github.com/romancy-go/romancy/riverjobs"
	"github.com/romancy-go/romancy/workflow"
)

// printed returns value as all that people print with shows it.
func printed(t *testing.T, value any) string {
	t.Helper()
	var all bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
		fmt.Fprintf(&all, verb+"\n", value)
	}
	for _, handler := range []slog.Handler{slog.NewTextHandler(&all, nil), slog.NewJSONHandler(&all, nil)} {
		slog.New(handler).Info("printed", "value", value)
	}
	if text, err := json.Marshal(value); err == nil { // some have functions in them
		all.Write(text)
	}
	return all.String()
}

// By itself: some verbs look behind pointers for what they cannot print, and read what other tests write to.
func TestNothingThatHoldsAURLPrintsItsPassword(t *testing.T) { //nolint:paralleltest // see above
	// Of the string that the App can start with, this is a secret beside the password of the test's server.
	pool := pgtest.Pool(t)
	address := pool.Config().ConnConfig
	url := fmt.Sprintf("host=%s port=%d user=%s dbname=%s password=%s sslpassword=hunter2 sslmode=disable",
		address.Host, address.Port, address.User, address.Database, address.Password)
	var log bytes.Buffer
	app := NewApp(WithDatabase(url), WithListenURL(url), WithAutoMigrate(), WithSchema("secrets"), WithWorkflows(echoFlow), WithLogger(syncLogger(&log)))
	before := printed(t, app)
	if err := app.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	pool = app.Pool()
	values := map[string]any{
		"the App before": before,
		"the App":        app, "its status": app.Status(), "its options": app.options,
		"the options": []Option{WithDatabase(url), WithListenURL(url)}, "the listener": app.Listener(), "the engine": app.Engine(), "the outbox": app.Outbox(),
		"bus.ListenerConfig": bus.ListenerConfig{Pool: pool, ListenURL: url}, "bus.NotifierConfig": bus.NotifierConfig{Pool: pool},
		"bus.SubscriberConfig": bus.SubscriberConfig{Pool: pool, Listener: app.Listener()}, "workflow.Config": workflow.Config{Pool: pool, Listener: app.Listener()},
		"outbox.RelayConfig": outbox.RelayConfig{Pool: pool, Listener: app.Listener()}, "riverjobs.Config": riverjobs.Config{Pool: pool},
		"a struct of theirs": struct {
			App    *App
			Config bus.ListenerConfig
			hidden *App
		}{app, bus.ListenerConfig{ListenURL: url}, app},
	}
	before += printed(t, app) // the others are looked at when nobody writes to them
	if err := app.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	values["the App before"] = before
	for name, value := range values {
		if text := printed(t, value); strings.Contains(text, "hunter2") || strings.Contains(text, "68756e74657232") {
			t.Errorf("%s prints the password:\n%s", name, text)
		}
	}
	if text := log.String(); strings.Contains(text, "hunter2") {
		t.Errorf("the log has the password:\n%s", text)
	}
}

func TestAPasswordWithAnUnescapedAtIsRefusedWithoutBeingShown(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"postgres://me:hunter2@hunter2@localhost/shop", "postgres://me:hunter2/hunter2@localhost/shop", "postgres://me:hunter2@localhost:hunter2/shop"} {
		text := startError(t, WithDatabase(url), WithListenURL(url))
		wantSays(t, text, "WithDatabase: ", "WithListenURL: ")
		if strings.Contains(text, "hunter2") {
			t.Errorf("%s is refused with\n%s", url, text)
		}
	}
	wantSays(t, startError(t, WithDatabase("postgres://me:hunter2@hunter2@localhost/shop")), "%40")
	if _, err := check(*given(WithDatabase("postgres://me:hunter%402@localhost/shop"))); err != nil {
		t.Errorf("%%40 is refused: %v", err)
	}
}

func given(opts ...Option) *options {
	o := new(options)
	for _, opt := range opts {
		opt.apply(o)
	}
	return o
}

func syncLogger(log *bytes.Buffer) *slog.Logger {
	return slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})) // a handler's writes are one after the other
}
