package workflow_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// What the operator has broken is not the messages' fault: they come again, and are handled once it is mended.
func TestHandlersRejectNothingForWhatIsWrongWithTheSchema(t *testing.T) {
	t.Parallel()
	for name, broken := range map[string]struct{ breaks, mends string }{
		"a table is renamed": {
			"alter table romancy.instances rename to instances_before",
			"alter table romancy.instances_before rename to instances",
		},
		"a column is renamed": {
			"alter table romancy.instances rename column status to status_before",
			"alter table romancy.instances rename column status_before to status",
		},
		"nothing satisfies a constraint": {
			"alter table romancy.instances add constraint closed check (false) not valid; alter table romancy.mailbox add constraint closed check (false) not valid",
			"alter table romancy.instances drop constraint closed; alter table romancy.mailbox drop constraint closed",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			flow := workflow.Define("order", func(_ *workflow.Context, n int) (int, error) { return n, nil })
			w := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.ClientOnly = true }))
			ctx := testContext(t)
			if _, err := flow.Start(ctx, w.Engine, 1, workflow.WithID("there")); err != nil {
				t.Fatal(err)
			}
			note := workflow.WithRejected(func(msg *message.Message, cause error) error {
				t.Errorf("message %s is lost: %v", msg.UUID, cause)
				return nil
			})
			start := func() error {
				msg := message.NewMessage("order-1", []byte("1"))
				msg.SetContext(ctx)
				return w.StartHandler(flow, note)(msg)
			}
			send := func() error {
				msg := message.NewMessage("letter-1", []byte(`"x"`))
				msg.SetContext(ctx)
				msg.Metadata.Set(workflow.MetadataInstanceID, "there")
				return w.SendHandler("letters", note, workflow.WithTarget(workflow.TargetFromMetadata))(msg)
			}
			if _, err := pool.Exec(ctx, broken.breaks); err != nil {
				t.Fatal(err)
			}
			for what, handle := range map[string]func() error{"start": start, "send": send} {
				if err := handle(); err == nil {
					t.Errorf("the message for a %s would be acknowledged", what)
				}
			}
			if _, err := pool.Exec(ctx, broken.mends); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(start(), send()); err != nil {
				t.Fatalf("delivered again: %v", err)
			}
			if n := count(t, pool, "select count(*) from romancy.instances where id = 'message:order::order-1'"); n != 1 {
				t.Errorf("the message started %d runs", n)
			}
			if n := count(t, pool, "select count(*) from romancy.mailbox where receiver = 'there'"); n != 1 {
				t.Errorf("the message is in the mailbox %d times", n)
			}
		})
	}
}

// Without WithRejected the log is all that is left of a message: it is acknowledged, and one line of level error names it.
func TestRejectedMessagesAreLoggedAndAcknowledged(t *testing.T) {
	t.Parallel()
	log := &lines{}
	flow := workflow.Define("order", func(_ *workflow.Context, n int) (int, error) { return n, nil })
	w := startWorker(t, pgtest.Pool(t), []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.Logger = log.logger() }))
	for name, rejects := range map[string]struct {
		handle message.NoPublishHandlerFunc
		uuid   string
		says   string
	}{
		"start": {w.StartHandler(flow), "order-1", "not valid at byte"},
		"send":  {w.SendHandler("letters"), "letter-1", "json.RawMessage is encoded as is no JSON"},
	} {
		if err := rejects.handle(message.NewMessage(rejects.uuid, []byte(`{"Item":`))); err != nil {
			t.Errorf("%s: %v, and the message would be delivered for ever", name, err)
		}
		found := 0
		for _, line := range log.all(t) {
			if cause, _ := line["error"].(string); line["message_uuid"] == rejects.uuid && line["level"] == "ERROR" && strings.Contains(cause, rejects.says) {
				found++
			}
		}
		if found != 1 {
			t.Errorf("%s: %d lines of level error name the message and the cause, want 1: %v", name, found, log.all(t))
		}
	}
}

// Who rejects messages can tell a receiver that may come later from one that has ended.
func TestUndeliverableSaysWhetherTheRunHasEnded(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("order", func(_ *workflow.Context, n int) (int, error) { return n, nil })
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 1, workflow.WithID("done"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := run.Result(ctx); err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]struct {
		says   string
		absent bool
	}{
		"done":   {"its status is completed", false},
		"nobody": {"no such run", true},
	} {
		var cause error
		msg := message.NewMessage("letter", []byte("1"))
		msg.SetContext(ctx)
		msg.Metadata.Set(workflow.MetadataInstanceID, target)
		handle := w.SendHandler("letters", workflow.WithTarget(workflow.TargetFromMetadata), workflow.WithRejected(func(_ *message.Message, err error) error {
			cause = err
			return nil
		}))
		if err := handle(msg); err != nil {
			t.Fatal(err)
		}
		tx, err := pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		inTx := w.SendToTx(ctx, tx, target, "letters", 1)
		if err := tx.Rollback(ctx); err != nil {
			t.Fatal(err)
		}
		for how, err := range map[string]error{"rejected": cause, "sent": w.SendTo(ctx, target, "letters", 1), "sent in a transaction": inTx} {
			if !errors.Is(err, workflow.ErrUndeliverable) || errors.Is(err, workflow.ErrNotFound) != want.absent || !strings.Contains(err.Error(), want.says) {
				t.Errorf("%s to %s: %v, want it undeliverable and to say %q", how, target, err, want.says)
			}
		}
	}
}
