package outage

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestAnOutageIsSaidOnceThenEveryMinuteThenItsEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		r := New(slog.New(slog.NewTextHandler(&log, nil)), "cannot write", "writes again")
		lines := func() (out []string) { return strings.Split(strings.TrimSpace(log.String()), "\n") }

		r.Succeeded(t.Context())
		if log.Len() > 0 {
			t.Fatalf("said without an outage: %s", log.String())
		}
		for range 1000 {
			r.Failed(t.Context(), &pgconn.PgError{Code: "53100"}, "statement", "AppendRecord")
			time.Sleep(100 * time.Millisecond)
		}
		if got := lines(); len(got) != 2 || !strings.Contains(got[0], "remedy") || !strings.Contains(got[0], "AppendRecord") ||
			!strings.Contains(got[1], "failures=601") {
			t.Fatalf("after 100 s of failures the lines are %q, want the first and one after a minute", got)
		}
		if r.Err() == nil {
			t.Error("the outage lasts and has no error")
		}
		r.Succeeded(t.Context())
		r.Succeeded(t.Context())
		if got := lines(); len(got) != 3 || !strings.Contains(got[2], "writes again") || !strings.Contains(got[2], "failures=1000") {
			t.Fatalf("the lines are %q, want one more for the end", got)
		}
		for range 100 { // it comes and goes
			r.Failed(t.Context(), errors.New("again"))
			time.Sleep(100 * time.Millisecond)
			r.Succeeded(t.Context())
		}
		if got := lines(); len(got) != 3 || r.Err() != nil {
			t.Fatalf("what comes and goes within a minute makes the lines %q, want no more", got)
		}
		time.Sleep(time.Minute)
		r.Failed(t.Context(), errors.New("again"))
		if got := lines(); len(got) != 4 || !strings.Contains(got[3], "failures=101") {
			t.Fatalf("a later outage makes the lines %q, want one more that counts what had none", got)
		}
		r.Succeeded(t.Context())
		if got := lines(); len(got) != 5 {
			t.Fatalf("its end makes the lines %q, want one more", got)
		}
	})
}
