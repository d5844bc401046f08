package workflow

import (
	"context"
	"fmt"

	"github.com/romancy-go/romancy/workflow/internal/commit"
)

// maxIntake is how many starts, messages and events of callers may be on their way to the database at one time.
const maxIntake = 10_000

// intake bounds what callers have queued: more of them wait here, as long as their contexts allow. A caller who gives up
// leaves what it has queued behind, so without this an outage that callers try again and again to get through would fill
// the memory.
type intake chan struct{}

// enter must be followed by leave when what was queued has been answered.
func (i intake) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err // nothing was queued
	}
	select {
	case i <- struct{}{}:
		return nil
	default:
	}
	select {
	case i <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%d starts, messages and events of this process are waiting to be written: %w", cap(i), ctx.Err())
	}
}

func (i intake) leave() { <-i }

// takeIn queues an operation when there is room, and waits for its outcome, or for ctx.
func takeIn[T any](ctx context.Context, i intake, queue func(then func(T, error))) (T, error) {
	if err := i.enter(ctx); err != nil {
		var none T
		return none, err
	}
	return commit.Await(ctx, func(then func(T, error)) {
		queue(func(result T, err error) {
			i.leave()
			then(result, err)
		})
	})
}
