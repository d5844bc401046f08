package outbox

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"

	"github.com/romancy-go/romancy/internal/outage"
	"github.com/romancy-go/romancy/internal/refusal"
)

// troubles says what keeps the relay from working: for each kind of failure one line when it begins, one a minute, and one
// when it is over, whichever of the relay's goroutines it happens to. A failure that one of them has does not end because
// others work.
type troubles struct {
	logger *slog.Logger

	mu    sync.Mutex
	kinds map[string]*trouble
}

type trouble struct {
	reporter *outage.Reporter
	of       map[string]struct{} // what fails
}

const (
	kindAway = "away"
	kindPool = "pool"
)

func newTroubles(logger *slog.Logger) *troubles {
	return &troubles{logger: logger, kinds: map[string]*trouble{}}
}

// failed notes that what failed with err.
func (t *troubles) failed(ctx context.Context, what string, err error, attrs ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	kind := kindOf(err)
	t.overLocked(ctx, what, kind)
	found := t.kinds[kind]
	if found == nil {
		found = &trouble{reporter: newReporter(t.logger, kind), of: map[string]struct{}{}}
		t.kinds[kind] = found
	}
	found.of[what] = struct{}{}
	found.reporter.Failed(ctx, err, append([]any{"while", what}, attrs...)...)
}

// worked notes that what works, or that it is given up.
func (t *troubles) worked(ctx context.Context, what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.overLocked(ctx, what, "")
}

// overLocked ends what's part in all kinds but one.
func (t *troubles) overLocked(ctx context.Context, what, but string) {
	for kind, found := range t.kinds {
		if kind == but {
			continue
		}
		delete(found.of, what)
		if len(found.of) == 0 {
			found.reporter.Succeeded(ctx)
			delete(t.kinds, kind)
		}
	}
}

// kindOf tells failures apart that a person would: what the database says, word for word, and two that it does not say.
func kindOf(err error) string {
	code := refusal.Code(err)
	switch {
	case errors.Is(err, errPoolBusy):
		return kindPool
	case code == "", strings.HasPrefix(code, "08"), strings.HasPrefix(code, "57P"):
		return kindAway
	default:
		return code
	}
}

func newReporter(logger *slog.Logger, kind string) *outage.Reporter {
	switch kind {
	case kindAway:
		return outage.New(logger, "outbox relay cannot reach the database", "outbox relay reaches the database again")
	case kindPool:
		return outage.New(logger, "outbox relay gets no connection of the pool", "outbox relay gets connections of the pool again")
	default:
		return outage.New(logger, "outbox relay is refused by the database", "outbox relay is no longer refused by the database")
	}
}
