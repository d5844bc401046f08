package integration_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/romancy-go/romancy"
	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// deadly kills the process that executes it, as running out of memory does.
var deadly = workflow.DefineActivity("deadly", func(ctx context.Context, kills bool) (string, error) {
	if !kills {
		return "survived", nil
	}
	process, err := os.FindProcess(os.Getpid())
	if err != nil {
		return "", err
	}
	if err := process.Kill(); err != nil {
		return "", err
	}
	<-ctx.Done() // never
	return "", ctx.Err()
})

var deadlyFlow = workflow.Define("deadly", func(ctx *workflow.Context, kills bool) (string, error) { return deadly.Execute(ctx, kills) })

// A run that kills its worker is tried a few times, then no more, and those who wait for it are told; others get on.
func TestRunThatKillsItsWorkersIsStuck(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	pool := pgtest.Connect(t, url)
	ctx, cancel := context.WithTimeout(t.Context(), crashPatience)
	t.Cleanup(cancel)
	if err := romancy.Migrate(ctx, pool); err != nil {
		t.Fatal(err)
	}
	client := romancy.NewApp(romancy.WithPool(pool), romancy.WithClientOnly(), romancy.WithLogger(noLogs), romancy.WithWorkflows(deadlyFlow))
	if err := client.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Shutdown(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	killer, err := deadlyFlow.Start(ctx, client.Engine(), true)
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan error, 1)
	go func() {
		_, err := killer.Result(ctx)
		told <- err
	}()
	const deaths = 3
	died := 0
	for over := false; !over; {
		worker := spawnCrashWorker(t, crashWorkerConfig{
			Name: fmt.Sprintf("worker-%d", died+1), Database: url, Notify: true, Lease: time.Second, Fallback: 2 * time.Second, MaxDeaths: deaths,
		})
		t.Cleanup(worker.kill)
		select {
		case <-worker.done:
			if died++; died > deaths {
				t.Fatalf("%d workers have died\n%s", died, worker.tail(40))
			}
		case err = <-told:
			over = true
		}
		if over { // the last worker lives, and executes others
			harmless, err := deadlyFlow.Start(ctx, client.Engine(), false)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := harmless.Result(ctx); err != nil || got != "survived" {
				t.Errorf("got %q, %v", got, err)
			}
			if err := worker.stop(ctx); err != nil {
				t.Error(err)
			}
		}
	}
	if failed := new(workflow.RunError); !errors.As(err, &failed) || failed.Status != workflow.StatusStuck || !errors.Is(err, workflow.ErrWorkersDied) {
		t.Errorf("the result is %v", err)
	}
	if died != deaths {
		t.Errorf("%d workers have died, want %d", died, deaths)
	}
}
