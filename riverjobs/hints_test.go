package riverjobs

import (
	"crypto/rand"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// stranger returns a function that notifies as a role which may connect and has no grant.
func stranger(t *testing.T, pool *pgxpool.Pool) (notify func(channel, payload string)) {
	t.Helper()
	role, password := "stranger_"+strings.ToLower(rand.Text()[:12]), rand.Text()
	if _, err := pool.Exec(t.Context(), "create role "+role+" login password '"+password+"'"); err != nil {
		t.Fatal(err)
	}
	their := pgtest.Connect(t, pool.Config().ConnString(), func(c *pgxpool.Config) {
		c.ConnConfig.User, c.ConnConfig.Password = role, password
	})
	return func(channel, payload string) {
		t.Helper()
		if _, err := their.Exec(t.Context(), "select pg_notify($1, $2)", channel, payload); err != nil {
			t.Fatal(err)
		}
	}
}

func TestForgedCommandsToRiverChangeNothing(t *testing.T) {
	const theirs = "text-of-a-stranger"
	b := setup(t)
	notify := stranger(t, b.pool)
	start(t, b.config())
	await(t, "the first sweep", b.swept[KindResume])
	forge := func() {
		notify("romancy.river_control", `{"action":"pause","queue":"*"}`)
		notify("romancy.river_control", `{"action":"pause","queue":"`+Queue+`"}`)
		notify("romancy.river_leadership", `{"action":"request_resign"}`)
		notify("romancy.river_leadership", `{"action":"resigned","leader_id":"`+theirs+`"}`)
		for _, channel := range []string{"control", "leadership", "insert"} {
			notify("romancy.river_"+channel, theirs)
			notify("romancy.river_"+channel, `{"action":{"`+theirs+`":1},"queue":"`+theirs+`"}`)
		}
	}
	forging := time.Now()
	for time.Since(forging) < 3*time.Second { // so that a leader that resigns has none of its terms to sweep in
		forge()
		time.Sleep(50 * time.Millisecond)
	}
	for len(b.swept[KindResume]) > 0 {
		<-b.swept[KindResume]
	}
	forging = time.Now()
	for sweeps := 0; sweeps < 3; {
		forge()
		select {
		case <-b.swept[KindResume]:
			sweeps++
		case <-time.After(50 * time.Millisecond):
		}
		if time.Since(forging) > patience {
			t.Fatalf("%d sweeps in %s: a role without a grant has stopped them", sweeps, patience)
		}
	}
	if took := time.Since(forging); took > patience/2 {
		t.Errorf("three sweeps took %s", took)
	}
	if strings.Contains(b.log.String(), theirs) {
		t.Errorf("what a stranger has notified is in the log:\n%s", b.log.String())
	}
}

func TestRiverIsToldHintsAlone(t *testing.T) {
	for _, c := range []struct{ topic, payload, told string }{
		{"river_insert", `{"queue": "romancy", "more": "theirs"}`, `{"queue":"romancy"}`},
		{"river_insert", `{"queue":"other"}`, ""},
		{"river_insert", `{"queue":5}`, ""},
		{"river_insert", `theirs`, ""},
		{"river_insert", ``, ""},
		{"river_leadership", `{"action":"resigned","leader_id":"theirs"}`, `{"action":"resigned"}`},
		{"river_leadership", `{"action":"request_resign"}`, ""},
		{"river_control", `{"action":"pause","queue":"romancy"}`, ""},
		{"river_control", `{"action":"cancel","queue":"romancy","job_id":1}`, ""},
		{"river_control", `{"action":"resigned","queue":"romancy"}`, ""},
		{"river_later", `{"action":"resigned","queue":"romancy"}`, ""},
		{"river_insert", strings.Repeat(`{"a":`, 1500), ""},
	} {
		if told, ok := hint(c.topic, c.payload); told != c.told || ok != (c.told != "") {
			t.Errorf("%s %.60s: told %q, %v, want %q", c.topic, c.payload, told, ok, c.told)
		}
	}
}

func TestRiverIsSeldomToldThatNobodyLeads(t *testing.T) {
	l, now := &hintsOnly{}, time.Now()
	told := 0
	for range 60 {
		if l.vacancyDue(now) {
			told++
		}
		now = now.Add(time.Second)
	}
	if told != 4 {
		t.Errorf("told %d times in a minute, want 4", told)
	}
}
