package workflow

import (
	"errors"
	"testing"
)

// After a claim that was lost the next takes a quarter, one at least, and those that come let it grow to what it was.
func TestClaimsShrinkAfterOneThatWasLostAndGrowAgain(t *testing.T) {
	t.Parallel()
	var size claimSize
	lost := errors.New("lost")
	for i, step := range []struct {
		err  error
		next int
	}{{nil, 100}, {lost, 25}, {lost, 6}, {lost, 1}, {lost, 1}, {nil, 2}, {nil, 4}, {lost, 1}, {nil, 2}, {nil, 4}, {nil, 8}, {nil, 16}, {nil, 32}, {nil, 64}, {nil, 100}, {nil, 100}} {
		size.learn(size.of(100), step.err)
		if got := size.of(100); got != step.next {
			t.Fatalf("after step %d the next claim takes %d, want %d", i, got, step.next)
		}
	}
	for range 20 {
		size.learn(size.of(100), nil)
	}
	if size.lowered != 0 || size.of(5000) != 5000 {
		t.Errorf("it is still lowered to %d", size.lowered)
	}
}
