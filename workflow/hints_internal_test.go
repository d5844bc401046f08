package workflow

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/metric/noop"
	"pgregory.net/rapid"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/journal"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// hearer is an engine that was never started, with runs in memory: whatever it is told stays queued.
type hearer struct {
	*Engine
	executing, parked *run
}

func newHearer(t testing.TB) *hearer {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), "host=/nowhere user=nobody") // connects when it is used
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	definition := Define("flow", func(*Context, int) (int, error) { return 0, nil })
	engine, err := NewEngine(Config{
		Pool: pool, Workflows: []Definition{definition}, MeterProvider: noop.NewMeterProvider(),
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(engine.reports.foreign.Close)
	h := &hearer{Engine: engine}
	h.repopulate(definition)
	return h
}

// repopulate forgets what was heard before.
func (h *hearer) repopulate(definition Definition) {
	e := h.Engine
	e.committer = commit.New(commit.Config{Store: e.store, Logger: e.logger})
	e.cache = newCache(newSlots(10, []Definition{definition}))
	e.held, e.published, e.mailRuns, e.mailChannels = newTally(), newTally(), newTally(), newTally()
	e.matching, e.matchingOn, e.coldEvents, e.looking = newTally(), newTally(), newTally(), newLooking()
	e.mail, e.events = mailMarks{}, eventMarks{}
	past, _ := journal.New(nil, nil)
	add := func(id string) *run {
		r := &run{
			engine: e, id: id, definition: definition, token: 7, worker: 3, journal: past,
			stream: &commit.Stream{}, resume: make(chan *resumption, 1), stopWork: func() {},
		}
		e.addLocked(r)
		return r
	}
	h.executing, h.parked = add("executing"), add("parked")
	e.listenLocked(h.executing, []listening{{channel: "letters"}})
	e.park(h.parked, waiting{position: 1, kind: journal.Receive, due: time.Now().Add(time.Hour)},
		[]listening{{channel: "letters"}, {channel: "event:paid", event: &store.EventWait{Type: "paid"}}})
}

func (h *hearer) channels() []string {
	return []string{h.config.Channels.WorkflowResumable, h.config.Channels.ChannelMessage, h.endedOn, h.cancelledOn, h.leftOn, h.laterOn}
}

// failer is a test, of whatever kind.
type failer interface {
	Helper()
	Fatalf(format string, arguments ...any)
}

// check reports what has changed that only the database may change.
func (h *hearer) check(t failer, what string) {
	t.Helper()
	e := h.Engine
	for _, r := range []*run{h.executing, h.parked} {
		if e.cache.runs[r.id] != r || r.lost.Load() || r.asked.Load() != nil || r.token != 7 || r.worker != 3 || len(r.resume) > 0 {
			t.Fatalf("%s: run %s is changed: lost %v, asked %v, token %d", what, r.id, r.lost.Load(), r.asked.Load(), r.token)
		}
	}
	if h.executing.phase != executing || h.parked.phase != parked || !h.parked.timed() {
		t.Fatalf("%s: the phases are %d and %d", what, h.executing.phase, h.parked.phase)
	}
	if first, ok := e.cache.deadlines.Next(); !ok || time.Until(first) < 50*time.Minute {
		t.Fatalf("%s: a deadline is %s", what, first)
	}
	if e.mail.highest != 0 || e.mail.low > 0 || len(e.mail.shared) > 0 || e.events.low != 0 {
		t.Fatalf("%s: marks are moved: %d, %d, %v, %d", what, e.mail.highest, e.mail.low, e.mail.shared, e.events.low)
	}
	for _, heard := range []*tally{e.held, e.published, e.mailRuns, e.mailChannels, e.matching, e.matchingOn, e.coldEvents} {
		kept := 0
		for name := range heard.counts {
			kept += len(name)
		}
		if limit := maxTally * (MaxIDLength + len(eventPrefix)); kept > limit {
			t.Fatalf("%s: %d bytes are kept of what was heard", what, kept)
		}
	}
}

var forgedPayloads = []string{
	"", "{", "null", "[]", `"parked"`, "0", "\x00", `{"instance_id":`, `{"instance_id":7}`, `{"instance_id":""}`,
	`{"instance_id":"parked"}`, `{"instance_id":"executing","reason":"x"}`, `{"instance_id":"parked","reason":"x","ended":true}`,
	`{"instance_id":"executing","ended":true}`, `{"instance_id":"parked","workflow_name":"flow"}`, `{"INSTANCE_ID":"parked","Ended":true}`,
	`{"channel_name":"letters","message_id":9223372036854775807}`, `{"channel_name":"letters","message_id":-9223372036854775808}`,
	`{"channel_name":"letters","message_id":9223372036854775808}`, `{"channel":"letters","message_id":"12","target_instance_id":"parked"}`,
	`{"channel_name":"letters","message_id":1,"target_instance_id":"executing"}`, `{"channel_name":"letters","target_instance_id":"nobody"}`,
	`{"channel_name":"event:paid","message_id":9223372036854775807}`, `{"channel_name":"event:paid","message_id":-1}`, `{"channel_name":"event:"}`,
	`{"channel_name":"event:paid","target_instance_id":"parked"}`, `{"instance_id":"parked","timer_id":"timer:1","expires_at":"1970-01-01T00:00:00Z"}`,
	`{"instance_id":"` + strings.Repeat("x", 7900) + `"}`, `{"channel_name":"` + strings.Repeat("x", 7900) + `"}`,
	`{"channel_name":"event:` + strings.Repeat("x", 7900) + `"}`, strings.Repeat("[", 7999), `{"instance_id":"\ud800"}`, "{\"channel_name\":\"a\\u0000b\"}",
}

// FuzzHint: no payload on any channel panics, changes a run, moves a mark up or has more kept than ids.
func FuzzHint(f *testing.F) {
	for channel := range 5 {
		for _, payload := range forgedPayloads {
			f.Add(channel, payload, false)
		}
		f.Add(channel, "", true)
	}
	h := newHearer(f)
	definition := h.definitions["flow"]
	f.Fuzz(func(t *testing.T, channel int, payload string, catchUp bool) {
		h.repopulate(definition)
		channels := h.channels()
		name := channels[uint(channel)%uint(len(channels))]
		for range 2 {
			h.heard(bus.Notification{Channel: name, Payload: payload, CatchUp: catchUp || payload == ""})
		}
		h.check(t, fmt.Sprintf("%q on %s", payload, name))
	})
}

// Nor does any sequence of them, cut anywhere.
func TestNoSequenceOfHintsChangesAnything(t *testing.T) {
	t.Parallel()
	h := newHearer(t)
	definition := h.definitions["flow"]
	rapid.Check(t, func(t *rapid.T) {
		h.repopulate(definition)
		var said []string
		for range rapid.IntRange(1, 50).Draw(t, "notifications") {
			payload := rapid.OneOf(rapid.SampledFrom(forgedPayloads), rapid.String()).Draw(t, "payload")
			if rapid.Bool().Draw(t, "cut") {
				payload = payload[:rapid.IntRange(0, len(payload)).Draw(t, "at")]
			}
			channel := rapid.SampledFrom(h.channels()).Draw(t, "channel")
			said = append(said, fmt.Sprintf("%.60q on %s", payload, channel))
			h.heard(bus.Notification{Channel: channel, Payload: payload, CatchUp: payload == ""})
		}
		h.check(t, strings.Join(said, ", "))
	})
}

// However often a run is named, one poll for it is under way and, when hints have misled too often, one look.
func TestRepeatedHintsAreOnePoll(t *testing.T) {
	t.Parallel()
	h := newHearer(t)
	sent := func(times int) {
		for range times {
			h.heard(bus.Notification{
				Channel: h.config.Channels.ChannelMessage, Payload: `{"channel_name":"letters","message_id":1,"target_instance_id":"parked"}`,
			})
		}
	}
	sent(10_000)
	if open, polled := len(h.parked.reasons.open), len(h.parked.reasons.polled); open != 1 || polled != 1 {
		t.Errorf("there is a poll for %d reasons and %d are left, want one and one more", polled, open)
	}
	for range 10 * mostTrust {
		h.trust.misled()
	}
	h.mu.Lock()
	h.parked.reasons.nothing()
	h.parked.reasons.end()
	h.mu.Unlock()
	sent(10_000)
	if len(h.looking.at) != 1 || h.parked.reasons.waiting() {
		t.Errorf("%d looks are asked for, and a poll: %v; want one look", len(h.looking.at), h.parked.reasons.waiting())
	}
}

func TestTrustInHintsIsLostAndComesBack(t *testing.T) {
	t.Parallel()
	var trusting trust
	now := time.Now()
	if !trusting.any(now) {
		t.Fatal("a hint is not followed at first")
	}
	for range mostTrust {
		trusting.misled()
	}
	if trusting.any(now) {
		t.Error("a hint is followed although all before it were false")
	}
	trusting.earned()
	if !trusting.any(now) {
		t.Error("a hint that proved true restores nothing")
	}
	for range 10 * mostTrust {
		trusting.misled()
	}
	if now = now.Add(10 * mostTrust / trustPerSecond * time.Second); !trusting.any(now.Add(time.Second)) {
		t.Error("time restores nothing")
	}
}

func TestRoundsAreSpacedByWhatTheyCost(t *testing.T) {
	t.Parallel()
	rounds := spacing{gap: 5 * time.Millisecond, share: 4, credit: 100 * time.Millisecond}
	now := time.Now()
	for round := range 20 {
		rounds.begin(now)
		if wait := rounds.end(now); wait != 0 {
			t.Fatalf("round %d after a pause waits %s", round, wait)
		}
	}
	rounds.begin(now)
	if wait := rounds.end(now); wait != 5*time.Millisecond {
		t.Errorf("a storm's next round waits %s, want the gap", wait)
	}
	rounds.begin(now)
	now = now.Add(200 * time.Millisecond)
	if wait := rounds.end(now); wait != 700*time.Millisecond {
		t.Errorf("after a round of 200ms it waits %s, want four times that but for the credit", wait)
	}
	rounds.begin(now)
	now = now.Add(time.Hour)
	if wait := rounds.end(now); wait != longestRest {
		t.Errorf("after a round of an hour it waits %s, want %s", wait, longestRest)
	}
}

// A number that a notification claims raises no mark: only what the database has returned does.
func TestMarksOfMessagesBelieveTheDatabaseOnly(t *testing.T) {
	t.Parallel()
	var marks mailMarks
	nothing := func() { marks.end(&store.Page{}, false, 0, nil) }
	marks.heard("news", math.MaxInt64)
	if nothing(); marks.low != 0 {
		t.Errorf("after a claim the sweep begins after %d, want 0", marks.low)
	}
	marks.seen(5000)
	if nothing(); marks.low != 5000-mailMargin {
		t.Errorf("after what the database has returned it begins after %d, want %d", marks.low, 5000-mailMargin)
	}
	marks.took("news", 5000)
	for _, id := range []int64{math.MinInt64, -1, 0, 1} {
		marks.heard("news", id)
		if marks.low != 0 || marks.since("news") != 1 {
			t.Errorf("after a claim of %d it begins after %d, and the channel at %d; want 0 and 1", id, marks.low, marks.since("news"))
		}
	}
	marks.heard("news", math.MaxInt64)
	if marks.took("news", 6000); marks.since("news") != 6000-mailMargin {
		t.Errorf("the channel begins at %d, want %d", marks.since("news"), 6000-mailMargin)
	}
}

// What is notified of a cancelled run has no reason in it, and is understood by builds before this one, which
// read these keys and take an empty payload as a request to look.
func TestReasonsAreNotNotified(t *testing.T) {
	t.Parallel()
	if asked := cancelledAnnouncement("run-1", &store.CancelledRun{Asked: true}); asked != "" {
		t.Errorf("of a run that undoes its steps it says %q: a former build would take that for the reason", asked)
	}
	var former struct {
		InstanceID string `json:"instance_id"`
		Reason     string `json:"reason"`
		Ended      bool   `json:"ended"`
	}
	ended := cancelledAnnouncement("run-1", &store.CancelledRun{Ended: true})
	if err := json.Unmarshal([]byte(ended), &former); err != nil || former.InstanceID != "run-1" || !former.Ended || former.Reason != "" {
		t.Errorf("of a run that has ended it says %q: a former build reads %+v, %v", ended, former, err)
	}
}
