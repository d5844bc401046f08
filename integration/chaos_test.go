package integration_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/pgtest"
)

// Four subscribers of all four channels, whose connections are killed, reset and frozen, and whose server is restarted and
// crashed, while events are written.
//
// What is guaranteed: an event that stays pending until a subscriber has had it is delivered to that subscriber at least
// once, however many notifications are lost. So an event is consumed here only after all four have seen it. And it must
// not take the slow catch-up of a quiet system: that is an hour away. Nor the next fault's: after every other fault the
// world stays whole until what is announced has arrived.
func TestEverySubscriberSeesEveryEventThroughChaos(t *testing.T) {
	t.Parallel()
	w := newChaosWorld(t, pgtest.Soak(50_000, 8_000), time.Duration(pgtest.Soak(60, 20))*time.Second)
	w.subscribe()
	var busy sync.WaitGroup
	for writer := range chaosWriters {
		busy.Go(func() { w.write(writer) })
	}
	consumed := make(chan struct{})
	busy.Go(func() { w.consume(consumed) })
	w.inflict()
	if !t.Failed() {
		select {
		case <-w.all:
		case <-time.After(chaosPatience):
		}
	}
	close(consumed)
	w.stopWriting()
	busy.Wait()
	w.judge()
}

const (
	chaosSubscribers = 4
	chaosWriters     = 4
	chaosBatch       = 10 // events a transaction
	// chaosPatience is how long after the last fault everything may take to arrive, on a busy machine.
	chaosPatience = 2 * time.Minute
)

type chaosWorld struct {
	t        *testing.T
	seed     uint64
	server   *pgtest.Server
	proxy    *pgtest.Proxy
	direct   *pgxpool.Pool // of the writers, another process
	proxied  *pgxpool.Pool // of the subscribers
	listener *bus.Listener
	notifier *bus.Notifier
	channels bus.Channels
	events   int
	lasts    time.Duration
	faults   map[string]int

	writing     context.Context
	stopWriting context.CancelFunc

	handlers sync.RWMutex // held for reading while a message is handled

	all chan struct{} // closed when everybody has seen everything

	mu        sync.Mutex
	seen      [chaosSubscribers][]bool
	announced []bool
	by        []int // how many have seen each event
	left      int   // what is unseen, over all subscribers
	done      []int // seen by all, not consumed yet
	delivered map[string]int
}

func newChaosWorld(t *testing.T, events int, lasts time.Duration) *chaosWorld {
	t.Helper()
	w := &chaosWorld{
		t: t, seed: rand.Uint64(), events: events, lasts: lasts,
		channels: bus.ChannelsFor("romancy"), faults: map[string]int{},
		all: make(chan struct{}), by: make([]int, events), announced: make([]bool, events), left: events * chaosSubscribers, delivered: map[string]int{},
	}
	t.Logf("seed %d, %d events, %s", w.seed, events, lasts)
	for i := range w.seen {
		w.seen[i] = make([]bool, events)
	}
	w.server = pgtest.Private(t)
	url, _, err := w.server.CreateDatabase(t.Context())
	w.must(err)
	w.direct = pgtest.Connect(t, url)
	w.proxy = pgtest.NewProxy(t, url)
	w.proxied = pgtest.Connect(t, w.proxy.URL(), func(c *pgxpool.Config) { c.MaxConns = 8 })
	t.Cleanup(w.proxy.Resume) // before the pool is closed
	w.writing, w.stopWriting = context.WithCancel(t.Context())
	t.Cleanup(w.stopWriting)

	quiet := slog.New(slog.DiscardHandler)
	w.listener, err = bus.NewListener(bus.ListenerConfig{Pool: w.proxied, ReconnectDelay: time.Second, Logger: quiet})
	w.must(err)
	w.must(w.listener.Start(t.Context()))
	w.notifier, err = bus.NewNotifier(bus.NotifierConfig{Pool: w.proxied, Mode: bus.ModeCoalesced, Logger: quiet})
	w.must(err)
	w.must(w.notifier.Start(t.Context()))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), chaosPatience)
		defer cancel()
		if err := w.listener.Close(ctx); err != nil {
			t.Error(err)
		}
		if err := w.notifier.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *chaosWorld) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// rng returns a source of its own for one of the test's goroutines.
func (w *chaosWorld) rng(who uint64) *rand.Rand { return rand.New(rand.NewPCG(w.seed, who)) }

// The faults. Each leaves the world whole again.

type chaosFault struct {
	name string
	do   func(rng *rand.Rand)
}

func (w *chaosWorld) menu() []chaosFault {
	kill := func(like string) func(*rand.Rand) { return func(*rand.Rand) { w.kill(like) } }
	stall := func(least, most time.Duration) func(*rand.Rand) {
		return func(rng *rand.Rand) {
			w.proxy.Stall()
			time.Sleep(least + time.Duration(rng.Int64N(int64(most-least))))
			w.proxy.Resume()
		}
	}
	restart := func(mode string) func(*rand.Rand) {
		return func(*rand.Rand) { w.must(w.server.Restart(w.t.Context(), mode)) }
	}
	menu := []chaosFault{
		{"listener killed", kill("% listen")},
		{"notifier killed", kill("% notify")},
		{"all connections killed", kill("%")},
		{"connections reset", func(*rand.Rand) { w.proxy.Cut() }},
		{"connections frozen", stall(50*time.Millisecond, 1500*time.Millisecond)},
		{"frozen, then reset", func(rng *rand.Rand) {
			w.proxy.Stall()
			time.Sleep(time.Duration(rng.Int64N(int64(500 * time.Millisecond))))
			w.proxy.Cut()
			w.proxy.Resume()
		}},
		{"listener killed ten times", func(*rand.Rand) {
			for range 10 {
				w.kill("% listen")
			}
		}},
		{"notifier killed ten times", func(*rand.Rand) {
			for range 10 {
				w.kill("% notify")
				time.Sleep(20 * time.Millisecond) // it finds out when it has something to send
			}
		}},
		{"handlers stuck", func(rng *rand.Rand) {
			w.handlers.Lock()
			time.Sleep(500*time.Millisecond + time.Duration(rng.Int64N(int64(500*time.Millisecond))))
			w.handlers.Unlock()
		}},
		{"server restarted", restart("fast")},
		{"server crashed", restart("immediate")},
	}
	if w.lasts >= time.Minute { // long enough to be taken for dead
		menu = append(menu, chaosFault{"connections half-open", stall(8*time.Second, 9*time.Second)})
	}
	return menu
}

// kill ends the sessions whose application_name is like the pattern, the asking one excepted. A connection of the pool may
// have died with the server: then the next is asked.
func (w *chaosWorld) kill(like string) {
	for range 20 {
		ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
		_, err := w.direct.Exec(ctx, `select pg_terminate_backend(pid) from pg_stat_activity
			where datname = current_database() and pid <> pg_backend_pid() and application_name like $1`, like)
		cancel()
		if err == nil {
			return
		}
	}
	w.t.Errorf("could not kill %q", like)
}

// inflict deals the faults in random order, all of them at least once, and ends with a world that is whole. Some follow
// closely upon each other, and some must be got over before the next.
func (w *chaosWorld) inflict() {
	rng := w.rng(1000)
	menu := w.menu()
	var deck []chaosFault
	for end := time.Now().Add(w.lasts); time.Now().Before(end) || len(w.faults) < len(menu); {
		if len(deck) == 0 {
			deck = slices.Clone(menu)
			rng.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
		}
		time.Sleep(100*time.Millisecond + time.Duration(rng.Int64N(int64(600*time.Millisecond))))
		deck[0].do(rng)
		w.faults[deck[0].name]++
		if rng.IntN(2) == 0 && !w.recovers() {
			w.t.Errorf("seed %d: what was announced before or during %q did not arrive", w.seed, deck[0].name)
			return
		}
		deck = deck[1:]
	}
}

// recovers waits until everybody has seen what is announced by now, and reports whether that came true.
func (w *chaosWorld) recovers() bool {
	w.mu.Lock()
	var missing []int
	for n, announced := range w.announced {
		if announced && w.by[n] < chaosSubscribers {
			missing = append(missing, n)
		}
	}
	w.mu.Unlock()
	for end := time.Now().Add(chaosPatience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		w.mu.Lock()
		missing = slices.DeleteFunc(missing, func(n int) bool { return w.by[n] == chaosSubscribers })
		w.mu.Unlock()
		if len(missing) == 0 {
			return true
		}
	}
	return false
}

// judge says what the chaos has shown.
func (w *chaosWorld) judge() {
	w.mu.Lock()
	defer w.mu.Unlock()
	status := w.listener.Status()
	w.t.Logf("faults: %v", w.faults)
	w.t.Logf("delivered: %v; reconnects %d, dropped into catch-ups %d", w.delivered, status.Reconnects, status.Dropped)
	if w.left > 0 {
		lost := map[string]int{}
		for subscriber := range w.seen {
			for event, seen := range w.seen[subscriber] {
				if !seen {
					lost[fmt.Sprint("subscriber ", subscriber, ", ", chaosKinds[event%len(chaosKinds)])]++
				}
			}
		}
		w.t.Errorf("seed %d: %d deliveries are missing: %v", w.seed, w.left, lost)
	}
	// Without these the test would show nothing.
	for _, source := range []string{bus.SourceNotify, bus.SourceCatchUp} {
		if w.delivered[source] == 0 {
			w.t.Errorf("nothing was delivered by %s", source)
		}
	}
	for end := time.Now().Add(chaosPatience); !w.listener.Healthy(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("the listener is %s, after %v", w.listener.Status().State, w.listener.Status().LastError)
		}
	}
	if w.listener.Status().Reconnects == 0 { // faults fall together, all of them on a machine that is busy enough
		w.t.Errorf("no reconnect after %v", w.faults)
	}
}
