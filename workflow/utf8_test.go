package workflow_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// What is not valid UTF-8 is refused where it is given, with a reason, and what an error says is the same in every execution.
func TestWhatIsNotUTF8(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	raw := json.RawMessage("\"caf\xe9\"")
	var mu sync.Mutex
	heard := map[string][]string{}
	fails := workflow.DefineActivity("fails", func(_ context.Context, how string) (json.RawMessage, error) {
		switch how {
		case "text":
			return nil, workflow.Terminal(errors.New("caf\xe9 is closed"))
		case "type":
			return nil, workflow.Terminal(&workflow.Error{Type: "t\xff", Message: "m\xff", Details: raw})
		default:
			return raw, nil
		}
	})
	flow := workflow.Define("flow", func(ctx *workflow.Context, how string) (string, error) {
		_, err := fails.Execute(ctx, how)
		mu.Lock()
		heard[how] = append(heard[how], err.Error())
		mu.Unlock()
		if err := workflow.Sleep(ctx, 300*time.Millisecond); err != nil {
			return "", err
		}
		return err.Error(), nil
	})
	w := startWorker(t, pool, []workflow.Definition{flow}, evicting)
	says := map[string]string{"text": "caf\uFFFD is closed", "type": "m\uFFFD", "result": "not valid UTF-8"}
	runs := map[string]*workflow.Run[string]{}
	for how := range says {
		var err error
		if runs[how], err = flow.Start(ctx, w.Engine, how); err != nil {
			t.Fatal(err)
		}
	}
	for how, run := range runs {
		said, err := run.Result(ctx)
		if err != nil || !strings.Contains(said, says[how]) || !utf8.ValidString(said) {
			t.Errorf("%s: %q, %v", how, said, err)
		}
	}
	mu.Lock()
	executions := 0
	for how, said := range heard {
		executions += len(said)
		for _, each := range said {
			if each != said[0] {
				t.Errorf("%s: %q in one execution, %q in another", how, said[0], each)
			}
		}
	}
	if executions < 5 { // two were evicted
		t.Errorf("%d executions of 3 runs, want replays", executions)
	}
	mu.Unlock()
	run, err := flow.Start(ctx, w.Engine, "text")
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"a message": w.SendTo(ctx, run.ID(), "letters", raw),
		"an event":  w.SendEvent(ctx, workflow.OutgoingEvent{Type: "paid", Source: "shop", ID: "1", Data: raw}),
	} {
		if err == nil || !strings.Contains(err.Error(), "not valid UTF-8") {
			t.Errorf("%s: %v", what, err)
		}
	}
}
