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
	s, err := store.New("romancy")
	if err != nil {
		t.Fatal(err)
	}
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
