package workflow_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// Messages get their numbers when they are written, and are there when their transactions commit, in whatever order that
// happens: late ones are taken, by exactly one competitor and by the run they were sent to, and those rolled back by nobody.
func TestMessagesAreTakenInWhateverOrderTheyCommit(t *testing.T) {
	t.Parallel()
	transactions := pgtest.Soak(5000, 200)
	const writers, competitors = 12, 5
	pool := pgtest.Pool(t, func(c *pgxpool.Config) { c.MaxConns = writers + 8 })
	competitor := workflow.Define("competitor", func(ctx *workflow.Context, _ int) ([]string, error) {
		if err := workflow.Subscribe(ctx, "jobs", workflow.Competing); err != nil {
			return nil, err
		}
		for taken := []string{}; ; {
			message, err := workflow.Receive[string](ctx, "jobs")
			if err != nil || message.Body == "" {
				return taken, err
			}
			taken = append(taken, message.Body)
		}
	})
	addressee := workflow.Define("addressee", func(ctx *workflow.Context, _ int) ([]string, error) {
		for taken := []string{}; ; {
			messages, err := workflow.ReceiveMany[string](ctx, "letters", 10)
			if err != nil {
				return nil, err
			}
			for _, message := range messages {
				if message.Body == "" {
					return taken, nil
				}
				taken = append(taken, message.Body)
			}
		}
	})
	definitions := []workflow.Definition{competitor, addressee}
	// A fallback this long never helps out.
	calm := configured(func(c *workflow.Config) { c.FallbackInterval = time.Hour })
	workers := []*worker{startWorker(t, pool, definitions, calm), startWorker(t, pool, definitions, calm)}
	ctx := testContext(t)
	var runs []*workflow.Run[[]string]
	for i := range competitors {
		run, err := competitor.Start(ctx, workers[i%2].Engine, i)
		if err != nil {
			t.Fatal(err)
		}
		runs = append(runs, run)
	}
	letters, err := addressee.Start(ctx, workers[0].Engine, 0, workflow.WithID("addressee"))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "all compete", func() bool { return count(t, pool, "select count(*) from romancy.subscriptions") == competitors })

	errUndo := errors.New("undo")
	numbers := make(chan int)
	var busy sync.WaitGroup
	var mu sync.Mutex
	committed := map[string]bool{}
	for i := range writers {
		busy.Go(func() {
			engine := workers[i%2].Engine
			for n := range numbers {
				body := fmt.Sprint(n)
				err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
					if err := errors.Join(engine.PublishTx(ctx, tx, "jobs", body), engine.SendToTx(ctx, tx, "addressee", "letters", body)); err != nil {
						return err
					}
					if n%3 == 0 { // stays open while others, with higher numbers, commit
						time.Sleep(time.Duration(rand.IntN(50)) * time.Millisecond)
					}
					if n%7 == 0 {
						return errUndo
					}
					return nil
				})
				switch {
				case err == nil:
					mu.Lock()
					committed[body] = true
					mu.Unlock()
				case !errors.Is(err, errUndo):
					t.Errorf("transaction %d: %v", n, err)
				}
			}
		})
	}
	for n := range transactions {
		numbers <- n
	}
	close(numbers)
	busy.Wait()
	eventually(t, "all are taken", func() bool { return count(t, pool, "select count(*) from romancy.mailbox") == 0 })
	for range runs {
		if err := workers[0].Publish(ctx, "jobs", ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := workers[0].SendTo(ctx, "addressee", "letters", ""); err != nil {
		t.Fatal(err)
	}
	compare := func(what string, runs ...*workflow.Run[[]string]) {
		t.Helper()
		times := map[string]int{}
		for _, run := range runs {
			taken, err := run.Result(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, body := range taken {
				times[body]++
			}
		}
		for body := range committed {
			if times[body] != 1 {
				t.Errorf("%s: message %s was taken %d times", what, body, times[body])
			}
		}
		if len(times) != len(committed) {
			t.Errorf("%s: %d messages were taken, %d were committed", what, len(times), len(committed))
		}
	}
	compare("competing", runs...)
	compare("sent", letters)
}
