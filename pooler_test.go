package romancy

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

var (
	poolerModes = []string{"session", "transaction", "statement"}
	execModes   = []string{"cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol"}
)

// throughPooler has an App whose pool is at pooled run orders, thirty at a time. It returns what went wrong.
func throughPooler(t *testing.T, pooled, direct string, round int) error {
	t.Helper()
	sink, log := &broker{}, &logBuffer{}
	app := NewApp(WithDatabase(pooled), WithListenURL(direct), WithWorkflows(orderFlow), WithOutboxPublisher(sink), WithLogger(log.logger()))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	defer shutdown(t, app)
	if err := app.Start(ctx); err != nil {
		return notStartedError{err}
	}
	errs := make([]error, 30)
	var orders sync.WaitGroup
	for i := range errs {
		orders.Go(func() {
			errs[i] = orderThrough(ctx, app, fmt.Sprintf("order-%d-%d", round, i))
			if errs[i] != nil {
				cancel()
			}
		})
	}
	orders.Wait()
	for i := range errs {
		for errs[i] == nil && !sink.has(fmt.Sprintf("order.placed order-%d-%d", round, i)) {
			select {
			case <-ctx.Done():
				errs[i] = fmt.Errorf("the event is not relayed: %w", ctx.Err())
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	failed := errors.Join(errs...)
	// What is tried again may succeed; a mode works if nothing has to be.
	for line := range strings.Lines(log.String()) {
		if strings.Contains(line, "level=ERROR") || strings.Contains(line, "SQLSTATE") {
			failed = errors.Join(failed, errors.New(line))
		}
	}
	return failed
}

func orderThrough(ctx context.Context, app *App, id string) error {
	run, err := orderFlow.Start(ctx, app.Engine(), order{ID: id, Cents: 100}, workflow.WithID(id))
	if err != nil {
		return err
	}
	if err := app.Engine().SendTo(ctx, run.ID(), "approvals", "approved"); err != nil {
		return err
	}
	_, err = run.Result(ctx)
	return err
}

// documentedModes reads the table of docs/operations.md: for each of pgx's exec modes, behind which mode of the pooler it works.
func documentedModes(t *testing.T) map[string]map[string]bool {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	works := map[string]map[string]bool{}
	for _, exec := range execModes {
		row := regexp.MustCompile("(?m)^\\| `" + exec + "`[^|]*\\| (yes|no)[^|]*\\| (yes|no)[^|]*\\| (yes|no)[^|]*\\|$").FindStringSubmatch(string(text))
		if row == nil {
			t.Fatalf("docs/operations.md has no row for %s with a yes or no for each of %v", exec, poolerModes)
		}
		works[exec] = map[string]bool{}
		for i, pooler := range poolerModes {
			works[exec][pooler] = row[i+1] == "yes"
		}
	}
	return works
}

// The table of docs/operations.md says which of pgx's exec modes work behind PgBouncer in which mode. Where one does not, whoever
// starts an App is told what to set.
func TestExecModesBehindAPooler(t *testing.T) {
	t.Parallel()
	works := documentedModes(t)
	for _, pooler := range poolerModes {
		for _, exec := range execModes {
			t.Run(pooler+" "+exec, func(t *testing.T) {
				t.Parallel()
				direct := pgtest.EmptyURL(t)
				if err := Migrate(t.Context(), pgtest.Connect(t, direct)); err != nil {
					t.Fatal(err)
				}
				pooled, err := url.Parse(pgtest.PgBouncer(t, direct, pooler))
				if err != nil {
					t.Fatal(err)
				}
				query := pooled.Query()
				query.Set("default_query_exec_mode", exec)
				pooled.RawQuery = query.Encode()
				const tries = 5 // what does not work may by luck: each client may have got the same server connection all the time
				err = throughPooler(t, pooled.String(), direct, 0)
				for try := 1; try < tries && err == nil && !works[exec][pooler]; try++ {
					err = throughPooler(t, pooled.String(), direct, try)
				}
				switch {
				case works[exec][pooler] != (err == nil):
					t.Errorf("documented to work: %t; what went wrong: %v", works[exec][pooler], err)
				case errors.As(err, new(notStartedError)) && !strings.Contains(err.Error(), "default_query_exec_mode"):
					t.Errorf("the start fails without saying what to set: %v", err)
				}
			})
		}
	}
}

// notStartedError is why an App did not start.
type notStartedError struct{ error }

func (e notStartedError) Unwrap() error { return e.error }
