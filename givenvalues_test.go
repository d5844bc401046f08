package romancy

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// A pool that is none is said to be none by everything that takes one, and nothing panics.
func TestAPoolThatIsNoneIsNamed(t *testing.T) {
	t.Parallel()
	for want, pool := range map[string]*pgxpool.Pool{"is nil": nil, "its zero value cannot be used": new(pgxpool.Pool)} {
		_, planErr := PlanMigration(t.Context(), pool)
		for _, err := range []error{Migrate(t.Context(), pool), planErr} {
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "give the application's *pgxpool.Pool") {
				t.Errorf("got %v, want it to say %q", err, want)
			}
		}
	}
	wantSays(t, startError(t, WithPool(new(pgxpool.Pool)), WithMaxDeaths(-1)), "WithPool: the pool was not made by pgxpool", "WithMaxDeaths(-1)")
}

type nilPublisher struct{}

func (*nilPublisher) Publish(string, ...*message.Message) error { return nil }
func (*nilPublisher) Close() error                              { return nil }

// A nil pointer in an interface is as little as nil.
func TestANilPointerIsNoPublisher(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	wantSays(t, startError(t, WithPool(pool), WithOutboxPublisher((*nilPublisher)(nil))), "WithOutboxPublisher(nil)")
}

// Whoever starts an App too late hears of that, after the mistakes in its options, and not of the database.
func TestStartWithAnEndedContextBlamesThat(t *testing.T) {
	t.Parallel()
	cause := errors.New("the deployment was given up")
	ctx, end := context.WithCancelCause(t.Context())
	end(cause)
	app := NewApp(WithDatabase("postgres://localhost:1/nowhere"))
	err := app.Start(ctx)
	if !errors.Is(err, cause) || !strings.Contains(err.Error(), "the context has ended") || strings.Contains(err.Error(), "cannot be reached") {
		t.Errorf("got %v", err)
	}
	if err := app.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := NewApp(WithDatabase("postgres://localhost:1/nowhere"), WithMaxDeaths(-1)).Start(ctx); err == nil || !strings.Contains(err.Error(), "WithMaxDeaths(-1)") {
		t.Errorf("got %v, want the mistake", err)
	}
}

// A mistake of WithRiver is said beside all others.
func TestAMistakeOfWithRiverIsSaidBesideOthers(t *testing.T) {
	t.Parallel()
	client, err := river.NewClient(riverpgxv5.New(pgtest.Pool(t)), &river.Config{Workers: river.NewWorkers()})
	if err != nil {
		t.Fatal(err)
	}
	wantSays(t, startError(t, WithDatabase(""), WithRiver(client, river.NewWorkers()), WithMaxDeaths(math.MaxInt)),
		"WithRiver without anything to sweep", `WithDatabase("")`, "WithMaxDeaths(9223372036854775807): give 1 to 1000000, or 0 for 5")
	wantSays(t, startError(t, WithDatabase(""), WithRiver(client, river.NewWorkers()), WithWorkflows(nil)),
		"WithRiver: riverjobs: Workers is not the bundle that Client was made with", "workflow 1 of 1 is nil")
}
