package romancy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/internal/schema"
	"github.com/romancy-go/romancy/outbox"
	"github.com/romancy-go/romancy/workflow"
)

// restricted is a migrated database, and a role in it that may do nothing until something is granted.
type restricted struct {
	owner *pgxpool.Pool
	url   string // as the role
	role  string
}

func newRestricted(t *testing.T) *restricted {
	t.Helper()
	r := &restricted{owner: pgtest.Connect(t, pgtest.EmptyURL(t))}
	if err := Migrate(t.Context(), r.owner); err != nil {
		t.Fatal(err)
	}
	config := r.owner.Config().ConnConfig
	r.role = "Restricted " + config.Database // roles are the cluster's; and one that must be quoted
	quoted := pgx.Identifier{r.role}.Sanitize()
	r.exec(t, "revoke execute on all functions in schema romancy from public")
	r.exec(t, "create role "+quoted+" login password 'secret'")
	t.Cleanup(func() {
		if _, err := r.owner.Exec(context.WithoutCancel(t.Context()), "drop owned by "+quoted+"; drop role "+quoted); err != nil {
			t.Error(err)
		}
	})
	r.url = fmt.Sprintf("host=%s port=%d dbname=%s user='%s' password=secret sslmode=disable",
		config.Host, config.Port, config.Database, r.role)
	return r
}

func (r *restricted) exec(t *testing.T, statement string) {
	t.Helper()
	if _, err := r.owner.Exec(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func (r *restricted) grant(t *testing.T, privileges ...schema.Privilege) {
	t.Helper()
	for _, statement := range schema.GrantStatements(DefaultSchema, r.role, privileges) {
		r.exec(t, statement)
	}
}

func (r *restricted) revoke(t *testing.T, privilege schema.Privilege) {
	t.Helper()
	statement := schema.GrantStatements(DefaultSchema, r.role, []schema.Privilege{privilege})[0]
	r.exec(t, strings.Replace(strings.Replace(statement, "grant ", "revoke ", 1), " to ", " from ", 1))
}

// restrictedApps are the kinds of Apps whose roles differ.
var restrictedApps = map[string][]Option{
	"executes":             {WithWorkflows(orderFlow)},
	"executes and relays":  {WithWorkflows(orderFlow), WithOutboxPublisher(&broker{})},
	"client":               {WithWorkflows(orderFlow), WithClientOnly()},
	"relays":               {WithOutboxPublisher(&broker{})},
	"client that relays":   {WithWorkflows(orderFlow), WithClientOnly(), WithOutboxPublisher(&broker{})},
	"without any workflow": {},
}

func (r *restricted) app(options []Option, more ...Option) *App {
	return NewApp(slices.Concat([]Option{WithDatabase(r.url)}, options, more)...)
}

// Whatever single privilege is missing, Start names it and the statement that mends it; and all of them at once.
func TestStartNamesEveryPrivilegeThatIsMissing(t *testing.T) {
	t.Parallel()
	for name, options := range restrictedApps {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRestricted(t)
			needed := schema.Privileges(r.app(options).options.needs()...)
			missing := func() []schema.Privilege {
				t.Helper()
				app := r.app(options)
				err := app.Start(t.Context())
				var refused *GrantError
				if !errors.As(err, &refused) {
					if err == nil {
						shutdown(t, app)
					}
					t.Fatalf("start: %v, want a *GrantError", err)
				}
				if refused.Role != r.role || refused.Schema != DefaultSchema {
					t.Errorf("it is about role %q in schema %q", refused.Role, refused.Schema)
				}
				for _, statement := range schema.GrantStatements(DefaultSchema, r.role, refused.Missing) {
					wantSays(t, err.Error(), statement)
				}
				return refused.Missing
			}
			if got := missing(); !slices.Equal(got, needed) {
				t.Errorf("without any privilege it misses\n%v, want\n%v", got, needed)
			}
			r.grant(t, needed...)
			for _, privilege := range needed {
				r.revoke(t, privilege)
				if got := missing(); !slices.Equal(got, []schema.Privilege{privilege}) {
					t.Errorf("without %v it misses %v", privilege, got)
				}
				r.grant(t, privilege)
			}
			app := r.app(options)
			if err := app.Start(t.Context()); err != nil {
				t.Fatalf("with all of them: %v", err)
			}
			shutdown(t, app)
		})
	}
}

// What docs/grants.sql grants is enough for everything: no part complains in the log, the sweeps included.
func TestARoleWithExactlyWhatIsAskedForCanDoEverything(t *testing.T) {
	t.Parallel()
	r := newRestricted(t)
	sink, log := &broker{}, &logBuffer{}
	everything := []Option{WithWorkflows(orderFlow, echoFlow), WithOutboxPublisher(sink)}
	r.grant(t, fileGrants(t, "romancy_run", "romancy_relay", "romancy_write")...)
	app := r.app(everything, WithLogger(log.logger()), WithNotifyFallbackInterval(time.Second), WithRetention(time.Second))
	if err := app.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer shutdown(t, app)
	runOrder(t, app, "order-1")
	eventually(t, "the event is relayed", func() bool { return sink.has("order.placed order-1") })
	eventually(t, "the run is deleted", func() bool {
		if _, err := app.retain(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err := app.Engine().Get(t.Context(), "order-1")
		return errors.Is(err, workflow.ErrNotFound)
	})
	for _, kind := range []string{"resume", "timers", "channel_timeouts", "outbox"} {
		eventually(t, kind+" was swept", func() bool {
			var done bool
			err := r.owner.QueryRow(t.Context(), "select exists (select from romancy.river_job where kind = $1 and state = 'completed')", "romancy_"+kind).Scan(&done)
			return err == nil && done
		})
	}
	relay := app.running.Load().relay
	_, statsErr := relay.Stats(t.Context())
	_, lettersErr := relay.DeadLetters(t.Context(), 1, nil)
	_, requeueErr := relay.Requeue(t.Context(), "no such")
	_, discardErr := relay.DiscardDeadLetters(t.Context(), "no such")
	if err := errors.Join(statsErr, lettersErr, requeueErr, discardErr); err != nil {
		t.Error(err)
	}
	if complains(log) {
		t.Errorf("there are complaints:\n%s", log)
	}
}

func complains(log *logBuffer) bool {
	return strings.Contains(log.String(), "level=ERROR") || strings.Contains(log.String(), "level=WARN")
}

// A client can do all that clients do.
func TestAClientsRoleCanDoAllThatClientsDo(t *testing.T) {
	t.Parallel()
	r := newRestricted(t)
	failing := workflow.Define("failing", func(*workflow.Context, int) (int, error) { return 0, errors.New("no") })
	options := []Option{WithWorkflows(orderFlow, failing), WithClientOnly()}
	r.grant(t, fileGrants(t, "romancy_client", "romancy_write")...)
	log := &logBuffer{}
	client := r.app(options, WithLogger(log.logger()))
	if err := client.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer shutdown(t, client)
	start(t, WithPool(r.owner), WithWorkflows(orderFlow, failing))
	runOrder(t, client, "order-1")
	ctx := t.Context()
	engine := client.Engine()
	run, err := orderFlow.Start(ctx, engine, order{ID: "order-2"}, workflow.WithStartAt(time.Now().Add(time.Hour)))
	if err != nil {
		t.Fatal(err)
	}
	failed, err := failing.Start(ctx, engine, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := failed.Result(ctx); err == nil {
		t.Fatal("it did not fail")
	}
	_, getErr := engine.Get(ctx, run.ID())
	_, historyErr := engine.History(ctx, run.ID())
	_, listErr := engine.List(ctx, workflow.Filter{})
	if err := engine.Retry(ctx, failed.ID()); err != nil {
		t.Errorf("retry: %v", err)
	}
	err = errors.Join(
		getErr, historyErr, listErr,
		engine.SendTo(ctx, run.ID(), "approvals", "granted", workflow.WithSendKey("once")),
		engine.Publish(ctx, "news", "x"),
		engine.SendEvent(ctx, workflow.OutgoingEvent{Type: "t", Source: "s", ID: "1"}),
		engine.Cancel(ctx, run.ID(), "not wanted"),
		engine.Erase(ctx, "order-1", workflow.WithFormerRuns()),
		pgx.BeginFunc(ctx, client.Pool(), func(tx pgx.Tx) error {
			return client.Outbox().Add(ctx, tx, outbox.Event{Topic: "t"})
		}),
	)
	if err != nil {
		t.Error(err)
	}
	if complains(log) {
		t.Errorf("there are complaints:\n%s", log)
	}
}
