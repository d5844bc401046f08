package workflow_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// lines keeps what is logged, as the attributes of each line.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

func (l *lines) logger() *slog.Logger {
	return slog.New(slog.NewJSONHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (l *lines) all(t *testing.T) (found []map[string]any) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		attributes := map[string]any{}
		if err := json.Unmarshal([]byte(line), &attributes); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		found = append(found, attributes)
	}
	return found
}

// Whatever goes wrong with a run: each line about it names the run, its workflow and the worker.
func TestEveryLineAboutARunNamesIt(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	undo := workflow.DefineActivity("reserve", func(_ context.Context, n int) (int, error) { return n, nil },
		workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 2, InitialInterval: time.Millisecond}),
	).WithCompensation(func(context.Context, int, int) error { return errors.New("cannot be undone") })
	undone := workflow.Define("undone", func(ctx *workflow.Context, n int) (int, error) {
		if _, err := undo.Execute(ctx, n); err != nil {
			return 0, err
		}
		ctx.Logger().Info("said by the workflow")
		return 0, errors.New("no")
	})
	panicking := workflow.Define("panicking", func(*workflow.Context, int) (int, error) { panic("what now?") })
	// A run whose history is another's.
	if _, err := pool.Exec(ctx, `with run as (
			insert into romancy.instances (id, workflow, status, token, ready_at, input) values ('diverged', 'undone', 'ready', 1, now(), '1') returning id)
		insert into romancy.history (instance_id, position, token, kind, name) select id, 1, 1, 'activity', 'another' from run`); err != nil {
		t.Fatal(err)
	}
	var logged lines
	w := startWorker(t, pool, []workflow.Definition{undone, panicking}, configured(func(c *workflow.Config) { c.Logger = logged.logger() }))
	for id, flow := range map[string]*workflow.Workflow[int, int]{"undone": undone, "panicking": panicking} {
		run, err := flow.Start(ctx, w.Engine, 1, workflow.WithID(id))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := run.Result(ctx); err == nil {
			t.Fatalf("%s did not fail", id)
		}
	}
	if _, err := undone.Run(w.Engine, "diverged").Result(ctx); err == nil {
		t.Fatal("the diverged run did not stop")
	}
	said := map[string]int{}
	for _, line := range logged.all(t) {
		id, workflow := line["instance_id"], line["workflow"]
		if (id == nil) != (workflow == nil) {
			t.Errorf("a line names the run or its workflow, but not both: %v", line)
		}
		if want, known := map[any]string{"undone": "undone", "panicking": "panicking", "diverged": "undone"}[id]; known {
			said[line["msg"].(string)]++ //nolint:forcetypeassert // slog's
			if workflow != want {
				t.Errorf("a line about %v, which is of %s, names the workflow %v", id, want, workflow)
			}
		}
		if worker, _ := line["worker"].(float64); worker == 0 {
			t.Errorf("a line does not name the worker: %v", line)
		}
	}
	for _, message := range []string{
		"attempt failed, will be retried", "compensation failed for good", "said by the workflow", "workflow panicked", "run is stuck",
	} {
		if said[message] == 0 {
			t.Errorf("nothing said %q about a run; what was said: %v", message, said)
		}
	}
}

// Lines about the worker name it by the id that it has then.
func TestLinesNameTheWorkerOfTheirMoment(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var logged lines
	w := startWorker(t, pool, []workflow.Definition{steps}, configured(func(c *workflow.Config) {
		c.Logger, c.Lease = logged.logger(), time.Second
	}))
	before := w.Status().Worker
	if _, err := pool.Exec(testContext(t), "update romancy.workers set lease_until = clock_timestamp() - interval '1 second'"); err != nil {
		t.Fatal(err)
	}
	workerOf := func(message string) (worker int64) {
		for _, line := range logged.all(t) {
			if id, named := line["worker"].(float64); named && line["msg"] == message && worker == 0 {
				worker = int64(id)
			}
		}
		return worker
	}
	eventually(t, "the worker has another id", func() bool { return workerOf("worker registered again") != 0 })
	if got := workerOf("worker registered again"); got == int64(float64(before)) { // as JSON has it
		t.Errorf("worker %d is still worker %d", before, got)
	}
}

// The key of a run's id is written in one place, where that of its workflow is, so that no line can name one alone.
func TestLinesAboutRunsAreMadeInOnePlace(t *testing.T) {
	t.Parallel()
	files := token.NewFileSet()
	seen := 0
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(files, path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(node ast.Node) bool {
			call, ok := node.(*ast.CallExpr)
			if !ok {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || !logs[strings.TrimSuffix(method.Sel.Name, "Context")] {
				return true
			}
			seen++
			for _, argument := range call.Args {
				if key, ok := argument.(*ast.BasicLit); ok && key.Value == `"instance_id"` {
					t.Errorf("%s names a run by itself: use the run's logger, or Engine.about", files.Position(call.Pos()))
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 20 {
		t.Errorf("only %d lines are logged: is this the right directory?", seen)
	}
}

var logs = map[string]bool{"Debug": true, "Info": true, "Warn": true, "Error": true, "LogAttrs": true}
