package store_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// What is sent to a run that has continued hundreds of times reaches the run that it has become without a look at those between.
func TestTheEndOfALongLineIsFoundByAKey(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := newStore(t)
	ctx := t.Context()
	conn, err := pool.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Exec(ctx, `insert into romancy.instances (id, workflow, status, token, ready_at, worker) values ('run-0', 'rounds', 'running', 1, now(), 1);
		insert into romancy.instances (id, workflow, status, token, ready_at) select 'other-' || n, 'rounds', 'waiting', 1, now() from generate_series(1, 1000) n`); err != nil {
		t.Fatal(err)
	}
	const rounds = 500
	for n := range rounds {
		ended := ""
		batch := &pgx.Batch{}
		s.ContinueRuns(batch, []store.Continue{{Fence: store.Fence{ID: fmt.Sprint("run-", n), Token: 1, Worker: 1}, NextID: fmt.Sprint("run-", n+1), Input: []byte(`1`)}}, func(id string) { ended = id })
		batch.Queue("update romancy.instances set status = 'running', token = 1, worker = 1 where id = $1", fmt.Sprint("run-", n+1)) // claimed
		if err := conn.SendBatch(ctx, batch).Close(); err != nil || ended == "" {
			t.Fatalf("round %d: %q ended, %v", n, ended, err)
		}
	}
	last := fmt.Sprint("run-", rounds)
	for _, id := range []string{"run-0", "run-1", "run-300", last} {
		if heir, pages := heirOf(t, conn.Conn(), id); heir != last || pages > 50 {
			t.Errorf("%s has become %s, which took %d pages; want %s, and a few", id, heir, pages, last)
		}
	}
	if heir, _ := heirOf(t, conn.Conn(), "other-1"); heir != "other-1" {
		t.Errorf("a run that has not continued has become %s", heir)
	}
	// When the last has ended it is found by going through the line: senders are told its status.
	if _, err := conn.Exec(ctx, "update romancy.instances set status = 'completed', ended_at = now() where id = $1", last); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"run-0", "run-499", last} {
		if heir, _ := heirOf(t, conn.Conn(), id); heir != last {
			t.Errorf("%s has become %s, want %s, which has ended", id, heir, last)
		}
	}
}

// heirOf returns what a run has become, and how many pages were read to find that out.
func heirOf(t *testing.T, conn *pgx.Conn, id string) (heir string, pages int) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), "select romancy.heir($1)", id).Scan(&heir); err != nil {
		t.Fatal(err)
	}
	var text string
	if err := conn.QueryRow(t.Context(), "explain (analyze, buffers, format json) select romancy.heir($1)", id).Scan(&text); err != nil {
		t.Fatal(err)
	}
	var plans []struct {
		Plan struct {
			Hit  int `json:"Shared Hit Blocks"`
			Read int `json:"Shared Read Blocks"`
		} `json:"Plan"`
	}
	if err := json.Unmarshal([]byte(text), &plans); err != nil || len(plans) != 1 {
		t.Fatalf("%s: %v", text, err)
	}
	return heir, plans[0].Plan.Hit + plans[0].Plan.Read
}
