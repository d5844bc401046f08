package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/romancy-go/romancy"
)

const (
	// playLimit bounds the whole play, which takes a few seconds.
	playLimit = time.Minute
	// stopLimit bounds the orderly end of each part.
	stopLimit = 10 * time.Second
)

var errTooLong = fmt.Errorf("not done after %s", playLimit)

// run plays both acts on a throwaway database and reports whether every check held. It leaves nothing running.
func run(ctx context.Context, out io.Writer, logger *slog.Logger) (passed bool, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, playLimit, errTooLong)
	defer cancel()

	fmt.Fprintln(out, "Starting PostgreSQL ...")
	db, err := startDatabase(ctx)
	defer func() { err = errors.Join(err, db.stop(ctx)) }()
	if err != nil {
		return false, err
	}

	fmt.Fprintln(out, "\nThe application as it was")
	before, err := playBefore(ctx, db.pool, logger)
	if err != nil {
		return false, fmt.Errorf("the application as it was: %w", err)
	}
	before.tell(out)

	if err := romancy.Migrate(ctx, db.pool); err != nil {
		return false, err
	}
	fmt.Fprintln(out, "\nWith Romancy added")
	after, err := playAfter(ctx, db.pool, logger)
	if err != nil {
		return false, fmt.Errorf("with Romancy added: %w", err)
	}
	after.tell(out)

	fmt.Fprintln(out, "\nChecks")
	checks := check{out: out}
	before.check(&checks)
	after.check(&checks)
	if checks.failed > 0 {
		fmt.Fprintf(out, "\n%d checks FAILED\n", checks.failed)
		return false, nil
	}
	fmt.Fprintln(out, "\nall checks passed")
	return true, nil
}
