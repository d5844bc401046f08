package workflow_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// record is the history of one channel: publishes and receives, as their callers saw them.
type record struct {
	began time.Time

	mu  sync.Mutex
	ops []porcupine.Operation
	at  map[string]int // the operation of a receive, by run and number: a replay repeats the call
}

// publishing is the input of an operation that publishes key; that of a receive is empty, its output what it received.
type publishing struct{ key string }

func (r *record) now() int64 { return time.Since(r.began).Nanoseconds() }

// call notes that an operation begins, at the moment it is called first.
func (r *record) call(client int, name, key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, again := r.at[name]; again {
		return
	}
	r.at[name] = len(r.ops)
	r.ops = append(r.ops, porcupine.Operation{ClientId: client, Input: publishing{key}, Call: r.now()})
}

// returned notes that an operation has ended, at the moment it ends first.
func (r *record) returned(name, key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if op := &r.ops[r.at[name]]; op.Return == 0 {
		op.Output, op.Return = key, r.now()
	}
}

// bag is what a channel in competing mode is: messages go in, and each comes out once, in whatever order. A receive that has
// timed out found it empty.
var bag = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		in, _ := state.(string)
		messages := strings.Fields(in)
		published, _ := input.(publishing)
		received, _ := output.(string)
		switch at := slices.Index(messages, received); {
		case published.key != "":
			messages = append(messages, published.key)
			slices.Sort(messages)
		case received == "":
			return len(messages) == 0, in
		case at < 0:
			return false, in
		default:
			messages = slices.Delete(messages, at, at+1)
		}
		return true, strings.Join(messages, " ")
	},
}

// Publishers and competing receivers race on several channels, while workers lose their leases. There is an order of all that
// they did, in agreement with what they saw of time, in which the channel is a bag.
func TestCompetingChannelIsLinearizable(t *testing.T) {
	t.Parallel()
	channels, publishers, messages := pgtest.Soak(40, 6), 4, 8
	const receivers, receives = 4, 12
	pool := pgtest.Pool(t)
	records := map[string]*record{}
	for i := range channels {
		records[fmt.Sprintf("channel-%d", i)] = &record{began: time.Now(), at: map[string]int{}}
	}
	type task struct {
		Channel         string
		Client, Receive int // Receive 0: until there is nothing more
	}
	flow := workflow.Define("receiver", func(ctx *workflow.Context, in task) (int, error) {
		r := records[in.Channel]
		if err := workflow.Subscribe(ctx, in.Channel, workflow.Competing); err != nil {
			return 0, err
		}
		got := 0
		for n := 0; in.Receive == 0 || n < in.Receive; n++ {
			name := fmt.Sprintf("%s/%d", ctx.InstanceID(), n)
			r.call(in.Client, name, "")
			message, err := workflow.Receive[string](ctx, in.Channel, workflow.WithTimeout(time.Duration(5+(7*n+in.Client)%40)*time.Millisecond))
			if err != nil && message.ID == 0 && !errors.Is(err, workflow.ErrTimeout) {
				return got, err
			}
			r.returned(name, message.Body)
			if err == nil {
				got++
			} else if in.Receive == 0 {
				break
			}
		}
		return got, nil
	})
	sender := workflow.Define("sender", func(ctx *workflow.Context, in task) (int, error) {
		for n := range messages {
			key := fmt.Sprintf("s%d-%d", in.Client, n)
			r := records[in.Channel]
			r.call(in.Client, key, key)
			if err := workflow.Publish(ctx, in.Channel, key); err != nil {
				return n, err
			}
			r.returned(key, "")
		}
		return messages, nil
	})
	quick := configured(func(c *workflow.Config) { c.Lease = time.Second })
	workers := []*worker{startWorker(t, pool, []workflow.Definition{flow, sender}, quick), startWorker(t, pool, []workflow.Definition{flow, sender}, quick)}
	ctx := testContext(t)
	var busy sync.WaitGroup
	for channel, r := range records {
		for i := range receivers {
			busy.Go(func() {
				run, err := flow.Start(ctx, workers[i%2].Engine, task{channel, i, receives})
				if err == nil {
					_, err = run.Result(ctx)
				}
				if err != nil {
					t.Errorf("receive from %s: %v", channel, err)
				}
			})
		}
		for i := range publishers {
			client := receivers + i
			busy.Go(func() {
				if i == 0 {
					run, err := sender.Start(ctx, workers[0].Engine, task{channel, client, 0})
					if err == nil {
						_, err = run.Result(ctx)
					}
					if err != nil {
						t.Errorf("publish from a run: %v", err)
					}
					return
				}
				for n := range messages {
					key := fmt.Sprintf("p%d-%d", i, n)
					r.call(client, key, key)
					var err error
					if i == 1 {
						err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return workers[0].PublishTx(ctx, tx, channel, key) })
					} else {
						err = workers[i%2].Publish(ctx, channel, key)
					}
					if err != nil {
						t.Errorf("publish: %v", err)
						return
					}
					r.returned(key, "")
					time.Sleep(time.Duration(rand.IntN(10)) * time.Millisecond)
				}
			})
		}
	}
	for i := range 2 {
		eventually(t, "something was received", func() bool {
			return count(t, pool, "select count(*) from romancy.history where kind = 'receive'") > 10*(i+1)
		})
		if _, err := pool.Exec(ctx, "update romancy.workers set lease_until = clock_timestamp() where id = $1", workers[i].Status().Worker); err != nil {
			t.Fatal(err)
		}
	}
	busy.Wait()
	for channel, r := range records {
		run, err := flow.Start(ctx, workers[0].Engine, task{channel, receivers + publishers, 0})
		if err == nil {
			_, err = run.Result(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
		received := 0
		for _, op := range r.ops {
			if op.Output != "" {
				received++
			}
		}
		if received != publishers*messages {
			t.Errorf("%s: %d messages were received, want %d", channel, received, publishers*messages)
		}
		if result := porcupine.CheckOperationsTimeout(bag, r.ops, patience/2); result != porcupine.Ok {
			t.Errorf("%s is not linearizable (%s)", channel, result)
			slices.SortFunc(r.ops, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
			for _, op := range r.ops {
				t.Logf("%d from %d to %d: %v -> %v", op.ClientId, op.Call/1000, op.Return/1000, op.Input, op.Output)
			}
		}
	}
}

// The check of histories finds what is wrong in them.
func TestBagFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	put := func(key string, call, end int64) porcupine.Operation {
		return porcupine.Operation{Input: publishing{key}, Output: "", Call: call, Return: end}
	}
	get := func(key string, call, end int64) porcupine.Operation {
		return porcupine.Operation{Input: publishing{}, Output: key, Call: call, Return: end}
	}
	for name, test := range map[string]struct {
		ops []porcupine.Operation
		ok  bool
	}{
		"in any order":            {[]porcupine.Operation{put("a", 0, 1), put("b", 2, 3), get("b", 4, 5), get("a", 6, 7), get("", 8, 9)}, true},
		"while it is published":   {[]porcupine.Operation{put("a", 0, 9), get("a", 1, 2)}, true},
		"empty beside a publish":  {[]porcupine.Operation{put("a", 0, 9), get("", 1, 2), get("a", 3, 4)}, true},
		"twice":                   {[]porcupine.Operation{put("a", 0, 1), get("a", 2, 3), get("a", 2, 5)}, false},
		"before it was published": {[]porcupine.Operation{get("a", 0, 1), put("a", 2, 3)}, false},
		"overlooked":              {[]porcupine.Operation{put("a", 0, 1), get("", 2, 3), get("a", 4, 5)}, false},
		"never published":         {[]porcupine.Operation{put("a", 0, 1), get("b", 2, 3)}, false},
	} {
		if ok := porcupine.CheckOperations(bag, test.ops); ok != test.ok {
			t.Errorf("%s: accepted %v, want %v", name, ok, test.ok)
		}
	}
}
