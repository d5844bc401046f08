package workflow

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestAnUnreachableDatabaseIsNamedToWhoWaitedForIt(t *testing.T) {
	t.Parallel()
	ended, end := context.WithCancel(t.Context())
	end()
	failed := fmt.Errorf("waited: %w", context.Canceled)
	refusing := &pgconn.PgError{Code: "53300", Message: "too many clients"}
	e := &Engine{}
	if got := e.explained(ended, failed); !errors.Is(got, failed) || got.Error() != failed.Error() {
		t.Errorf("without a connection to know of it becomes %q", got)
	}
	e.trouble = func() error { return refusing }
	got := e.explained(ended, failed)
	if !errors.Is(got, context.Canceled) || !strings.Contains(got.Error(), "the database cannot be reached: ") ||
		!strings.Contains(got.Error(), "too many clients") || !strings.Contains(got.Error(), "max_connections") {
		t.Errorf("it becomes %q", got)
	}
	if again := e.explained(ended, fmt.Errorf("outer: %w", got)); strings.Count(again.Error(), "cannot be reached") != 1 {
		t.Errorf("it is explained twice: %q", again)
	}
	if got := e.explained(ended, ErrNotFound); got.Error() != ErrNotFound.Error() {
		t.Errorf("an answer becomes %q", got)
	}
	if got := e.explained(t.Context(), failed); got.Error() != failed.Error() {
		t.Errorf("an error of another context becomes %q", got)
	}
	e.trouble = func() error { return nil }
	if got := e.explained(ended, failed); got.Error() != failed.Error() {
		t.Errorf("with a connection it becomes %q", got)
	}
}
