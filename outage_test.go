package romancy

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
)

var (
	messageOf = regexp.MustCompile(`level=\S+ msg=("[^"]*"|\S+)`)
	ofRiver   = regexp.MustCompile(`^"[A-Za-z.]+: `)
)

// However often an idle App tries while the database is away: each part says once that it is, and once that it is back.
func TestAnOutageIsAHandfulOfLines(t *testing.T) {
	t.Parallel()
	server := pgtest.Private(t)
	url, _, err := server.CreateDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pool := pgtest.Connect(t, url)
	log := &logBuffer{}
	app := start(t, WithPool(pool), WithWorkflows(echoFlow), WithAutoMigrate(), WithLogger(log.logger()))
	eventually(t, "it listens", app.Listener().Healthy)
	began, since := len(log.String()), time.Now()
	if err := server.Halt(t.Context(), "immediate"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Second) // more than a lease
	if err := server.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it listens and has a worker", func() bool { return app.Listener().Healthy() && app.Status().Engine.Worker != 0 })
	run, err := echoFlow.Start(t.Context(), app.Engine(), "hello")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := run.Result(t.Context()); err != nil {
		t.Fatal(err)
	}
	said, ours := map[string]int{}, 0
	for line := range strings.Lines(log.String()[began:]) {
		match := messageOf.FindStringSubmatch(line)
		if match == nil {
			t.Errorf("not a line as they are: %s", line)
			continue
		}
		if said[match[1]]++; !ofRiver.MatchString(match[1]) {
			ours++
		}
	}
	for message, n := range said {
		if n > 1+int(time.Since(since)/time.Minute) {
			t.Errorf("%s was said %d times", message, n)
		}
	}
	if ours > 12 || said[`"LISTEN/NOTIFY connection lost, reconnecting"`] != 1 || said[`"PostgreSQL LISTEN/NOTIFY connection established"`] != 1 {
		t.Errorf("not a beginning and an end of each part, but %d lines:\n%s", ours, log.String()[began:])
	}
}
