package store_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// Settings made for a session stay on a connection that is ours. Behind a pooler in transaction mode, where the next
// statement may be somebody else's, nothing is left of them.
func TestSessionSettingsStayWhereTheConnectionIsOurs(t *testing.T) {
	t.Parallel()
	direct := pgtest.Pool(t)
	s := newStore(t)
	for name, c := range map[string]struct {
		url     string
		ours    bool
		setting string
	}{
		"direct":      {direct.Config().ConnString(), true, "off"},
		"transaction": {pgtest.PgBouncer(t, direct.Config().ConnString(), "transaction"), false, "on"},
	} {
		conn, err := pgx.Connect(t.Context(), c.url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		ours, err := s.GuardSession(t.Context(), conn, time.Second)
		if err != nil || ours != c.ours {
			t.Errorf("%s: %t, %v; want %t", name, ours, err, c.ours)
		}
		var setting string
		if err := conn.QueryRow(t.Context(), "select current_setting('enable_seqscan')").Scan(&setting); err != nil || setting != c.setting {
			t.Errorf("%s: enable_seqscan is %s, %v; want %s", name, setting, err, c.setting)
		}
	}
}

// A glance sees whatever a sweep would find something to do for, and nothing when there is nothing.
func TestAGlanceSeesWhatSweepsWouldFind(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := newStore(t)
	run := func(status, rest string) string {
		return "insert into romancy.instances (id, workflow, status, worker, token, ready_at, wake_at) values ('run', 'order', '" + status + "', " + rest + ")"
	}
	due := func(g store.Glance) bool { return g.Within(0) }
	for name, c := range map[string]struct {
		insert string
		sees   func(store.Glance) bool
	}{
		"a dead worker":          {"insert into romancy.workers (label, lease_until) values ('dead', now())", func(g store.Glance) bool { return g.Dead }},
		"a run executing":        {run("running", "1, 1, now(), null"), func(g store.Glance) bool { return g.Running }},
		"a ready run":            {run("ready", "null, 1, now(), null"), func(g store.Glance) bool { return g.Ready }},
		"a message":              {"insert into romancy.mailbox (channel, mode, payload) values ('c', 'competing', '1')", func(g store.Glance) bool { return g.Mail }},
		"a deadline that passed": {run("waiting", "1, 1, now(), now()"), due},
		"a deadline to come": {run("waiting", "1, 1, now(), now() + interval '1 hour'"), func(g store.Glance) bool {
			return g.Within(time.Hour) && !due(g)
		}},
	} {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		glance := func() (seen store.Glance) {
			batch := &pgx.Batch{}
			s.Glance(batch, []string{"order"}, &seen)
			if err := tx.SendBatch(t.Context(), batch).Close(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			return seen
		}
		if seen := glance(); seen.Dead || seen.Running || seen.Ready || seen.Mail || seen.Until != nil {
			t.Errorf("of nothing: %+v", seen)
		}
		if _, err := tx.Exec(t.Context(), c.insert); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if seen := glance(); !c.sees(seen) {
			t.Errorf("of %s: %+v", name, seen)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
