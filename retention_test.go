package romancy

import (
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// Nobody but the App itself calls for it: the periodic job deletes what WithRetention gives a time to, and nothing else.
func TestAnAppDeletesRunsThatEndedLongAgo(t *testing.T) {
	t.Parallel()
	pool := pgtest.Connect(t, pgtest.EmptyURL(t))
	if err := Migrate(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	// Before the App starts: without notifications its first term as leader begins with a sweep, and the next is a minute later.
	if _, err := pool.Exec(t.Context(), `insert into romancy.instances (id, workflow, status, token, ready_at, input, output, ended_at)
			select 'run-' || n, 'echo', 'completed', 1, now(), '"x"', '"x"', now() - n * interval '1 minute' from generate_series(1, 100) n`); err != nil {
		t.Fatal(err)
	}
	off := false
	app := start(t, WithPool(pool), WithWorkflows(echoFlow), WithListenNotify(&off), WithRetention(time.Hour), WithMaxWorkflowsPerBatch(7))
	left := func(where string) (n int) {
		t.Helper()
		if err := pool.QueryRow(t.Context(), "select count(*) from romancy.instances where "+where).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	eventually(t, "it leads", func() bool { return app.Status().Leading })
	eventually(t, "what ended more than an hour ago is gone", func() bool { return left("ended_at < now() - interval '1 hour'") == 0 })
	if n := left("ended_at > now() - interval '50 minutes'"); n < 40 {
		t.Errorf("%d runs are left that ended within 50 minutes: it deletes what is to be kept", n)
	}
}
