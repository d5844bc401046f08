package workflow_test

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// quoting is encoded by a method that quotes what it encodes.
type quoting string

func (q quoting) MarshalJSON() ([]byte, error) {
	return nil, workflow.NewError("quoting", "cannot encode "+string(q))
}

// What a caller has given, and is refused for its form, is in no error.
func TestNothingThatACallerGivesIsShownWhenItIsRefused(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	shown := newQuotes()
	flow := workflow.Define("taking", func(_ *workflow.Context, _ any) (int, error) { return 0, nil })
	w := startWorker(t, pool, []workflow.Definition{flow}, shown.options()...)
	ctx := testContext(t)
	start := func(input any) error {
		_, err := flow.Start(ctx, w.Engine, input)
		return err
	}
	list := func(filter workflow.Filter) error {
		_, err := w.List(ctx, filter)
		return err
	}
	sendWith := func(attributes map[string]string) error {
		return w.SendEvent(ctx, workflow.OutgoingEvent{Type: "paid", Source: "shop", ID: "1", Data: 1, Attributes: attributes})
	}
	for what, err := range map[string]error{
		"a reason that is too long":            w.Cancel(ctx, "none", "hunter2"+strings.Repeat("x", 10_000)),
		"a reason that is no text":             w.Cancel(ctx, "none", "hunter2\xff"),
		"a number":                             start(json.Number("hunter2")),
		"JSON that is none":                    start(json.RawMessage(`{"a": hunter2}`)),
		"a value whose encoder quotes it":      start(quoting("hunter2")),
		"a value that has no JSON":             start(map[string]any{"hunter2": math.Inf(1)}),
		"a message":                            w.SendTo(ctx, "none", "cards", quoting("hunter2")),
		"an attribute without a name":          sendWith(map[string]string{"": "hunter2"}),
		"an attribute that cannot be kept":     sendWith(map[string]string{"card": "hunter2\x00"}),
		"an attribute that is no text":         sendWith(map[string]string{"card": "hunter2\xff"}),
		"a path":                               list(workflow.Filter{InputPath: `$ ? (@.card == "card-4111" hunter2)`}),
		"a path that PostgreSQL does not hold": list(workflow.Filter{InputPath: "$.hunter2\x00"}),
		"a cursor":                             list(workflow.Filter{Cursor: "hunter2 card-4111"}),
	} {
		if err == nil {
			t.Errorf("%s is taken", what)
			continue
		}
		shown.note(err.Error())
		t.Logf("%s: %v", what, err)
	}
	shown.note(workflow.NewError("refused", "no").WithDetails(quoting("hunter2")).Error())
	w.shutdown(t)
	shown.check(t)
}

// A replay that has no place for what is recorded tells where, and not what.
func TestAReplayThatDivergesDoesNotShowWhatIsRecorded(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	shown := newQuotes()
	define := func(channels ...string) *workflow.Workflow[payment, payment] {
		return workflow.Define("choosing", func(ctx *workflow.Context, _ payment) (payment, error) {
			var cases []workflow.Case
			for _, channel := range channels {
				cases = append(cases, workflow.OnMessage(channel, func(workflow.Message[payment]) error { return nil }))
			}
			if err := workflow.Select(ctx, cases...); err != nil {
				return payment{}, err
			}
			m, err := workflow.Receive[payment](ctx, "go")
			return m.Body, err
		})
	}
	flow := define("cards", "cash")
	former := startWorker(t, pool, []workflow.Definition{flow}, shown.options()...)
	ctx := testContext(t)
	secret := payment{Card: "hunter2 card-4111", Amount: 4111111}
	if _, err := flow.Start(ctx, former.Engine, secret, workflow.WithID("chosen")); err != nil {
		t.Fatal(err)
	}
	if err := former.SendTo(ctx, "chosen", "cards", secret); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the choice is recorded", func() bool {
		return count(t, pool, "select count(*) from romancy.history where instance_id = 'chosen' and payload::text like '%hunter2%'") == 1
	})
	former.shutdown(t)

	w := startWorker(t, pool, []workflow.Definition{define("cash", "cheques")}, shown.options()...)
	if err := w.SendTo(ctx, "chosen", "go", secret); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the run is stuck", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where id = 'chosen' and status = 'stuck'") == 1
	})
	info, err := w.Get(ctx, "chosen")
	if err != nil {
		t.Fatal(err)
	}
	if said := info.Err.Error(); !strings.Contains(said, `a message on channel "cards"`) {
		t.Errorf("it says %s", said)
	}
	shown.note(info.Err)
	w.shutdown(t)
	shown.check(t)
}
