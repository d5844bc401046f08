package workflow_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// quotes searches all that this process has printed for what was planted in values.
type quotes struct {
	log     *lines
	process tracing
	texts   []string
}

func (q *quotes) note(values ...any) {
	for _, value := range values {
		text, _ := json.Marshal(value) //nolint:errchkjson // what has no JSON is not printed as such
		q.texts = append(q.texts, fmt.Sprintf("%v", value), fmt.Sprintf("%+v", value), fmt.Sprintf("%#v", value), string(text))
	}
}

func (q *quotes) check(t *testing.T) {
	t.Helper()
	q.log.mu.Lock()
	defer q.log.mu.Unlock()
	for _, span := range q.process.exported.GetSpans() {
		text := fmt.Sprint(span.Name, span.Attributes, span.Status)
		for _, event := range span.Events {
			text += fmt.Sprint(event.Name, event.Attributes)
		}
		q.texts = append(q.texts, text)
	}
	for _, text := range append(q.texts, q.log.text.String()) {
		for line := range strings.Lines(text) {
			for _, secret := range []string{"hunter2", "card-4111", "4111111"} {
				if strings.Contains(line, secret) {
					t.Errorf("%s is shown: %s", secret, line)
				}
			}
		}
	}
}

func newQuotes() *quotes { return &quotes{log: &lines{}, process: newTracing()} }

func (q *quotes) options() []workerOption {
	return []workerOption{configured(func(c *workflow.Config) { c.Logger = q.log.logger() }), q.process.option()}
}

type payment struct {
	Card   string
	Amount int
}

// What the database quotes of the values that it refuses is nowhere: not in an error, a log line, a span or a status, whichever statement
// of ours it refuses, and however.
func TestNothingTheDatabaseQuotesIsShown(t *testing.T) {
	t.Parallel()
	for name, raised := range map[string]struct{ sql, code string }{
		"a literal":  {"perform (convert_from(convert_to(%s, 'UTF8'), 'UTF8'))::int", "22P02"},
		"a key":      {"raise exception using errcode = '23505', message = 'duplicate key', detail = 'Key (card)=(' || %s || ') already exists.', constraint = 'cards_pkey'", "23505"},
		"a trigger":  {"raise exception using errcode = '22023', message = 'card ' || %[1]s, detail = %[1]s, hint = %[1]s, table = 'cards', column = 'number'", "22023"},
		"a hint":     {"raise exception using errcode = '22004', message = 'no' || chr(10) || %[1]s, detail = %[1]s, hint = %[1]s", "22004"},
		"a deadlock": {"raise exception using errcode = '40P01', message = 'deadlock detected', detail = 'Process 1: select ' || %s", "40P01"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			shown := newQuotes()
			pay := workflow.DefineActivity("pay", func(_ context.Context, p payment) (payment, error) { return p, nil })
			flow := workflow.Define("paying", func(ctx *workflow.Context, p payment) (string, error) {
				_, err := pay.Execute(ctx, p)
				return "paid", err
			})
			w := startWorker(t, pool, []workflow.Definition{flow}, shown.options()...)
			ctx := testContext(t)
			exec := func(sql string) {
				t.Helper()
				if _, err := pool.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
					t.Fatalf("%s: %v", sql, err)
				}
			}
			refuse := func(table, column string) {
				body := fmt.Sprintf(raised.sql, "new."+column+"::text")
				exec(fmt.Sprintf(`create function refuse_%[1]s() returns trigger language plpgsql as $$ begin
					if new.%[2]s::text like '%%card-4111%%' then %[3]s; end if; return new; end $$;
					create trigger refuse before insert on romancy.%[1]s for each row execute function refuse_%[1]s()`, table, column, body))
			}
			secret := payment{"card-4111", 1}

			// History refuses a result: of the run there is a status, a line and a span.
			var stuck *workflow.Run[string]
			if strings.HasPrefix(raised.code, "22") {
				refuse("history", "payload")
				var err error
				if stuck, err = flow.Start(ctx, w.Engine, secret); err != nil {
					t.Fatal(err)
				}
				eventually(t, "the run is stuck", func() bool {
					return count(t, pool, "select count(*) from romancy.instances where status = 'stuck'") == 1
				})
				info, err := w.Get(ctx, stuck.ID())
				if err != nil {
					t.Fatal(err)
				}
				shown.note(info.Err)
			}

			refuse("instances", "input")
			refuse("mailbox", "payload")
			refuse("events", "data")
			tx, err := pool.Begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			inTransaction := func(do func(tx pgx.Tx) error) error {
				part, err := tx.Begin(ctx)
				if err != nil {
					t.Fatal(err)
				}
				err = do(part)
				if rollback := part.Rollback(ctx); rollback != nil {
					t.Fatal(rollback)
				}
				return err
			}
			waiting, err := flow.Start(ctx, w.Engine, payment{}, workflow.WithID("receiver"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := waiting.Result(ctx); err != nil {
				t.Fatal(err)
			}
			exec("update romancy.instances set status = 'waiting' where id = 'receiver'")
			refused := map[string]error{}
			_, refused["start"] = flow.Start(ctx, w.Engine, secret)
			_, refused["start with an id"] = flow.Start(ctx, w.Engine, secret, workflow.WithID("order-1"))
			_, refused["start many"] = flow.StartMany(ctx, w.Engine, []workflow.StartRequest[payment]{{Input: secret}, {Input: secret}})
			refused["start in a transaction"] = inTransaction(func(tx pgx.Tx) error { _, err := flow.StartTx(ctx, tx, w.Engine, secret); return err })
			refused["send"] = w.SendTo(ctx, "receiver", "cards", secret)
			refused["send in a transaction"] = inTransaction(func(tx pgx.Tx) error { return w.SendToTx(ctx, tx, "receiver", "cards", secret) })
			event := workflow.OutgoingEvent{Type: "paid", Source: "shop", ID: "1", Data: secret}
			refused["send an event"] = w.SendEvent(ctx, event)
			refused["send an event in a transaction"] = inTransaction(func(tx pgx.Tx) error { return w.SendEventTx(ctx, tx, event) })
			if err := tx.Rollback(ctx); err != nil {
				t.Fatal(err)
			}
			for what, err := range refused {
				var found *pgconn.PgError
				if !errors.As(err, &found) || found.Code != raised.code || !strings.Contains(err.Error(), raised.code) {
					t.Errorf("%s: %v, want one that says %s, and has the database's in its chain", what, err, raised.code)
				}
				shown.note(err)
			}

			text, err := json.Marshal(secret) //nolint:musttag // whatever it would be printed as
			if err != nil {
				t.Fatal(err)
			}
			msg := message.NewMessage("order-2", text)
			msg.SetContext(ctx)
			shown.note(w.StartHandler(flow, workflow.WithRejected(func(_ *message.Message, cause error) error { shown.note(cause); return cause }))(msg))
			shown.note(w.Status(), w.listener.Status())
			w.shutdown(t)
			shown.check(t)
		})
	}
}

// loud cannot be read, and says of what.
type loud struct{}

func (*loud) UnmarshalJSON(text []byte) error { panic("cannot read " + string(text)) }

// What does not fit the Go type that it is decoded into is not quoted either.
func TestNothingThatCannotBeDecodedIsShown(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	shown := newQuotes()
	type small struct{ Amount int8 }
	flow := workflow.Define("small", func(_ *workflow.Context, s small) (small, error) { return s, nil })
	panics := workflow.Define("panics", func(*workflow.Context, loud) (int, error) { return 1, nil })
	w := startWorker(t, pool, []workflow.Definition{flow, panics}, shown.options()...)
	ctx := testContext(t)
	for _, payload := range []string{`{"Amount": 4111111}`, `{"Amount": "hunter2"}`, `{"Amount": 1, hunter2}`} {
		msg := message.NewMessage("1", []byte(payload))
		msg.SetContext(ctx)
		for _, definition := range []workflow.Definition{flow, panics} {
			if err := w.StartHandler(definition, workflow.WithRejected(func(_ *message.Message, cause error) error { shown.note(cause); return nil }))(msg); err != nil {
				t.Fatal(err)
			}
		}
	}
	shown.note(w.Cancel(ctx, "damaged", "hunter2\xff"))
	if _, err := pool.Exec(ctx, `insert into romancy.instances (id, workflow, input, status, token, ready_at)
		select case w when 'small' then 'damaged' else w end, w, '{"Amount": 4111111}', 'ready', 1, now() from unnest(array['small', 'panics']) w`); err != nil {
		t.Fatal(err)
	}
	if _, err := w.SweepResume(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the runs are stuck", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status = 'stuck'") == 2
	})
	for _, id := range []string{"damaged", "panics"} {
		info, err := w.Get(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		shown.note(info.Err)
	}
	w.shutdown(t)
	shown.check(t)
}

// The texts of users' errors are in history whole, in the log and on spans clipped, or not at all.
func TestTheTextsOfUsersErrorsAreClippedOrHidden(t *testing.T) {
	t.Parallel()
	for name, hidden := range map[string]bool{"clipped": false, "hidden": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			shown := newQuotes()
			text := "card-4111 " + strings.Repeat("x", 3000) + " hunter2"
			fails := workflow.DefineActivity("fails", func(context.Context, int) (int, error) { return 0, workflow.NewError("declined", text) },
				workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 2, InitialInterval: 1}),
			)
			panics := workflow.DefineActivity("panics", func(context.Context, int) (int, error) { panic(text) },
				workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 1}))
			undone := workflow.DefineActivity("undone", func(_ context.Context, n int) (int, error) { return n, nil }).
				WithCompensation(func(context.Context, int, int) error { return workflow.Terminal(errors.New(text)) })
			flow := workflow.Define("failing", func(ctx *workflow.Context, n int) (int, error) {
				if _, err := undone.Execute(ctx, n); err != nil {
					return 0, err
				}
				if n == 0 {
					return fails.Execute(ctx, n)
				}
				return panics.Execute(ctx, n)
			})
			w := startWorker(t, pool, []workflow.Definition{flow},
				append(shown.options(), configured(func(c *workflow.Config) { c.HideErrorTexts = hidden }))...)
			ctx := testContext(t)
			for n := range 2 {
				run, err := flow.Start(ctx, w.Engine, n)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := run.Result(ctx); err == nil || !strings.Contains(err.Error(), "hunter2") {
					t.Errorf("history has lost the text of %v", err)
				}
			}
			w.shutdown(t)
			types := 0
			for _, line := range shown.log.all(t) {
				switch line["msg"] {
				case "attempt failed, will be retried", "run failed", "compensation failed for good":
					types++
					if hidden && line["error"] == "" || !hidden && len(line["error"].(string)) > 1100 { //nolint:forcetypeassert // it is the test's to find
						t.Errorf("a line says %q", line["error"])
					}
				}
			}
			if types < 5 {
				t.Errorf("%d lines about failures", types)
			}
			if hidden {
				shown.check(t)
				return
			}
			if strings.Contains(shown.log.text.String(), "hunter2") {
				t.Error("the end of a long text is in the log")
			}
			failed := 0
			for _, span := range shown.process.exported.GetSpans() {
				if len(span.Status.Description) > 1100 {
					t.Errorf("the span %s has %d bytes", span.Name, len(span.Status.Description))
				}
				if strings.Contains(span.Status.Description, "card-4111") {
					failed++
				}
			}
			if failed == 0 {
				t.Error("no span tells why")
			}
		})
	}
}
