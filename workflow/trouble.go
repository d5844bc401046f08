package workflow

import (
	"context"
	"errors"
	"fmt"

	"github.com/romancy-go/romancy/internal/refusal"
)

// unreachableError is the error of a caller whose context has ended while the engine could not reach the database.
type unreachableError struct {
	ended error // of the caller's context; the only one that errors.Is is to find
	why   error
}

func (e *unreachableError) Error() string {
	return fmt.Sprintf("the database cannot be reached: %v: %v", refusal.WithRemedy(e.why), e.ended)
}

func (e *unreachableError) Unwrap() error { return e.ended }

// explained adds to the error of a caller why the engine has no connection to the database, if that is why ctx has ended before
// there was an answer.
func (e *Engine) explained(ctx context.Context, err error) error {
	if err == nil || e.trouble == nil || ctx.Err() == nil || !errors.Is(err, ctx.Err()) {
		return err
	}
	if already := (*unreachableError)(nil); errors.As(err, &already) {
		return err
	}
	if why := e.trouble(); why != nil {
		return &unreachableError{err, why}
	}
	return err
}
