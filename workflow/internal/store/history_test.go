package store_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// However small its pages are, the history of several runs is loaded whole, once, and in order.
func TestHistoryIsLoadedWholeInPages(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := newStore(t)
	ctx := t.Context()
	// Runs of 0 to 12 records, of which one is missing here and there, in 100 bytes each.
	if _, err := pool.Exec(ctx, `insert into romancy.history (instance_id, position, token, kind, name, payload)
		select 'run-' || r, p, 1, 'activity', 'step', to_json(r || '/' || p || repeat('x', 90)) from generate_series(0, 12) r, generate_series(1, r) p where (r + p) % 7 > 0`); err != nil {
		t.Fatal(err)
	}
	ids := []string{"run-12", "run-0", "run-3", "unknown", "run-7", "run-11", "run-1"}
	var want []string
	for _, id := range ids {
		rows, err := pool.Query(ctx, "select instance_id || '/' || position || ' ' || left(payload #>> '{}', 6) from romancy.history where instance_id = $1 order by position", id)
		if err != nil {
			t.Fatal(err)
		}
		found, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, found...)
	}
	for _, limit := range [][2]int{{1, 1 << 20}, {3, 1 << 20}, {1000, 1}, {1000, 350}, {5, 450}, {len(want), 1 << 20}, {1000, 1 << 20}} {
		var got []string
		pages := 0
		for page := (&store.PastPage{IDs: ids}); page != nil; page = page.Next {
			batch := &pgx.Batch{}
			s.LoadHistory(batch, page, limit[0], limit[1])
			if err := pool.SendBatch(ctx, batch).Close(); err != nil {
				t.Fatal(err)
			}
			records := 0
			for _, id := range page.IDs {
				for _, record := range page.Pasts[id].Records {
					got = append(got, fmt.Sprintf("%s/%d %.6s", id, record.Position, strings.Trim(string(record.Payload), `"`)))
					records++
				}
			}
			if records > limit[0] || records*100 > limit[1]+100 {
				t.Errorf("%d records in a page of %d rows and %d bytes", records, limit[0], limit[1])
			}
			if pages++; pages > 2*len(want) {
				t.Fatalf("page %d after %d records", pages, len(got))
			}
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("in pages of %d rows and %d bytes:\n%q\nwant\n%q", limit[0], limit[1], got, want)
		}
	}
}

// What one run takes at once is bounded in bytes, and that messages for whoever competes were held meanwhile, and are left, is said.
func TestWhatIsTakenAtOnceIsBounded(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := newStore(t)
	ctx := t.Context()
	for bytes, want := range map[int]struct {
		taken int
		left  bool
	}{99: {0, true}, 100: {1, true}, 299: {2, true}, 300: {3, false}, 1000: {3, false}} {
		if _, err := pool.Exec(ctx, `truncate romancy.mailbox, romancy.instances, romancy.history;
			insert into romancy.instances (id, workflow, status, worker, token, ready_at) values ('run', 'order', 'running', 1, 1, now());
			insert into romancy.mailbox (channel, mode, payload) select 'jobs', 'competing', to_json(repeat('x', 98)) from generate_series(1, 3)`); err != nil {
			t.Fatal(err)
		}
		batch, mail := &pgx.Batch{}, store.Mail{}
		s.TakeMore(batch, store.More{Fence: store.Fence{ID: "run", Token: 1, Worker: 1}, Position: 2, Channel: "jobs", Limit: 10, Bytes: bytes, Competing: true}, func(took store.Mail) { mail = took })
		if err := pool.SendBatch(ctx, batch).Close(); err != nil {
			t.Fatal(err)
		}
		var rest int
		if err := pool.QueryRow(ctx, "select count(*) from romancy.mailbox").Scan(&rest); err != nil {
			t.Fatal(err)
		}
		if taken := strings.Count(string(mail.Messages), "xxx\""); taken != want.taken || rest != 3-want.taken || mail.Left != want.left {
			t.Errorf("in %d bytes: %d taken, %d left, said: %t; want %+v", bytes, taken, rest, mail.Left, want)
		}
	}
}
