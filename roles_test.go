package romancy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/internal/schema"
	"github.com/romancy-go/romancy/outbox"
	"github.com/romancy-go/romancy/workflow"
)

func readDocument(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("docs/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var grantLine = regexp.MustCompile(`(?m)^grant (.+) on (schema|table|sequence|function) romancy(?:\.(\w+))? to (romancy_\w+);$`)

// fileGrants returns what docs/grants.sql grants to roles, one privilege each, in the file's order.
func fileGrants(t *testing.T, roles ...string) (privileges []schema.Privilege) {
	t.Helper()
	text := readDocument(t, "grants.sql")
	lines := grantLine.FindAllStringSubmatch(text, -1)
	if len(lines) != strings.Count(text, "\ngrant ") {
		t.Fatalf("docs/grants.sql has grants that this test does not understand")
	}
	for _, role := range roles {
		found := false
		for _, line := range lines {
			if line[4] != role {
				continue
			}
			found = true
			for name := range strings.SplitSeq(line[1], ", ") {
				if p := (schema.Privilege{Kind: line[2], Object: line[3], Name: name}); !slices.Contains(privileges, p) {
					privileges = append(privileges, p)
				}
			}
		}
		if !found {
			t.Fatalf("docs/grants.sql grants nothing to %s", role)
		}
	}
	return privileges
}

// reader is what a dashboard has: an engine that executes nothing, and a relay that is never started.
type reader struct {
	engine *workflow.Engine
	relay  *outbox.Relay
}

func newReader(t *testing.T, pool *pgxpool.Pool) reader {
	t.Helper()
	listener, err := bus.NewListener(bus.ListenerConfig{Pool: pool, Disabled: true})
	if err != nil {
		t.Fatal(err)
	}
	notifier, err := bus.NewNotifier(bus.NotifierConfig{Pool: pool, Disabled: true})
	if err != nil {
		t.Fatal(err)
	}
	engine, err := workflow.NewEngine(workflow.Config{Pool: pool, Listener: listener, Notifier: notifier, ClientOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	relay, err := outbox.NewRelay(outbox.RelayConfig{Pool: pool, Publisher: &broker{}, Listener: listener})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(listener.Start(t.Context()), notifier.Start(t.Context()), engine.Start(t.Context())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if err := errors.Join(engine.Shutdown(ctx), notifier.Close(ctx), listener.Close(ctx)); err != nil {
			t.Error(err)
		}
	})
	return reader{engine, relay}
}

// readAll reads all that there is to read, and returns what is refused.
func (r reader) readAll(ctx context.Context) error {
	var unknown error
	if _, err := r.engine.Get(ctx, "no such run"); !errors.Is(err, workflow.ErrNotFound) {
		unknown = err
	}
	_, historyErr := r.engine.History(ctx, "order-1")
	_, listErr := r.engine.List(ctx, workflow.Filter{InputPath: "$.ID"})
	_, statsErr := r.relay.Stats(ctx)
	_, lettersErr := r.relay.DeadLetters(ctx, 1, nil)
	if err := errors.Join(unknown, historyErr, listErr, statsErr, lettersErr); err != nil {
		return err // a refused Result is tried again for as long as ctx lasts
	}
	_, err := orderFlow.Run(r.engine, "order-1").Result(ctx)
	return err
}

// subscribeAll subscribes to the four channels and returns what the first passes over what was missed say.
func subscribeAll(t *testing.T, pool *pgxpool.Pool) error {
	t.Helper()
	log := &logBuffer{}
	listener, err := bus.NewListener(bus.ListenerConfig{Pool: pool, Logger: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	subscriber, err := bus.NewSubscriber(bus.SubscriberConfig{Pool: pool, Listener: listener, Logger: log.logger(), FallbackInterval: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer func() {
		cancel()
		if err := errors.Join(subscriber.Close(), listener.Close(context.WithoutCancel(ctx))); err != nil {
			t.Error(err)
		}
	}()
	if err := listener.Start(ctx); err != nil {
		return err
	}
	for _, channel := range bus.ChannelsFor(DefaultSchema).All() {
		messages, err := subscriber.Subscribe(ctx, channel)
		if err != nil {
			return err
		}
		// Each has something that was there before, which only a catch-up tells.
		for told := false; !told; {
			select {
			case message := <-messages:
				message.Ack()
				told = true
			case <-time.After(20 * time.Millisecond):
				if said := log.String(); strings.Contains(said, "42501") {
					return fmt.Errorf("channel %s: %s", channel, said)
				}
			}
		}
	}
	return nil
}

// connect returns a pool as the role, which has no connection yet.
func (r *restricted) connect(t *testing.T) *pgxpool.Pool {
	t.Helper()
	return pgtest.Connect(t, r.url)
}

// populate makes an ended run, one that waits, one that is ready, a message and an event.
func (r *restricted) populate(t *testing.T) {
	t.Helper()
	app := start(t, WithPool(r.owner), WithWorkflows(orderFlow))
	runOrder(t, app, "order-1")
	shutdown(t, app)
	for _, statement := range []string{
		`insert into romancy.instances (id, workflow, status, token, ready_at, wake_at) values ('waits', 'x', 'waiting', 1, now(), now() + interval '1 day'), ('ready', 'x', 'ready', 1, now(), null)`,
		`insert into romancy.mailbox (channel, mode, receiver, payload) values ('letters', 'direct', 'waits', '1')`,
		`insert into romancy.outbox (event_id, topic, key, slot, payload) values ('event-1', 't', 'k', 0, '')`,
	} {
		r.exec(t, statement)
	}
}

// Of what docs/grants.sql grants to a role nothing can be left out: what needs it fails, or Start names it.
func TestNothingOfTheGrantsFileCanBeLeftOut(t *testing.T) {
	t.Parallel()
	apps := map[string][]Option{
		"romancy_run": restrictedApps["executes"], "romancy_client": restrictedApps["client"], "romancy_relay": restrictedApps["relays"],
	}
	for role, does := range map[string]func(t *testing.T, r *restricted) (attempt func(missing *schema.Privilege) error){
		"romancy_run": nil, "romancy_client": nil, "romancy_relay": nil,
		"romancy_write": func(t *testing.T, r *restricted) func(*schema.Privilege) error {
			t.Helper()
			pool := r.connect(t)
			writer, err := outbox.NewWriter(outbox.WriterConfig{})
			if err != nil {
				t.Fatal(err)
			}
			return func(*schema.Privilege) error {
				return pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return writer.Add(t.Context(), tx, outbox.Event{Topic: "t"}) })
			}
		},
		"romancy_read": func(t *testing.T, r *restricted) func(*schema.Privilege) error {
			t.Helper()
			r.populate(t)
			dashboard := newReader(t, r.connect(t))
			return func(*schema.Privilege) error { return dashboard.readAll(t.Context()) }
		},
		"romancy_subscribe": func(t *testing.T, r *restricted) func(*schema.Privilege) error {
			t.Helper()
			r.populate(t)
			return func(*schema.Privilege) error { return subscribeAll(t, r.connect(t)) }
		},
	} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			r := newRestricted(t)
			attempt := func(missing *schema.Privilege) error { return r.startsUnless(t, apps[role], missing) }
			if does != nil {
				attempt = does(t, r)
			}
			granted := fileGrants(t, role)
			r.grant(t, granted...)
			if err := attempt(nil); err != nil {
				t.Fatalf("with all of them: %v", err)
			}
			for _, p := range granted {
				r.revoke(t, p)
				if err := attempt(&p); err == nil {
					t.Errorf("nothing needs %v", p)
				}
				r.grant(t, p)
			}
			if err := attempt(nil); err != nil {
				t.Errorf("with all of them again: %v", err)
			}
		})
	}
}

// startsUnless starts an App and returns the *GrantError, which names missing and nothing else.
func (r *restricted) startsUnless(t *testing.T, options []Option, missing *schema.Privilege) error {
	t.Helper()
	app := r.app(options)
	err := app.Start(t.Context())
	if err == nil {
		shutdown(t, app)
		return nil
	}
	if refused := (*GrantError)(nil); missing != nil && (!errors.As(err, &refused) || !slices.Equal(refused.Missing, []schema.Privilege{*missing})) {
		t.Errorf("without %v Start says: %v", *missing, err)
	}
	return err
}

// A role of docs/grants.sql may do nothing in the schema that the file does not name, whatever PostgreSQL allows everybody or a
// migration has left.
func TestTheGrantsFileGrantsNoMore(t *testing.T) {
	t.Parallel()
	pool := pgtest.Connect(t, pgtest.EmptyURL(t))
	prefix := pool.Config().ConnConfig.Database // roles are the cluster's
	asHere := func(text string) string { return strings.ReplaceAll(text, "romancy_", prefix+"_") }
	t.Cleanup(func() {
		if _, err := pool.Exec(context.WithoutCancel(t.Context()), fmt.Sprintf(`do $$ declare name text; begin
			for name in select rolname from pg_roles where left(rolname, length('%[1]s_')) = '%[1]s_' loop
				execute format('drop owned by %%I cascade', name); execute format('drop role %%I', name);
			end loop; end $$`, prefix)); err != nil {
			t.Error(err)
		}
	})
	exec := func(text string) {
		t.Helper()
		if _, err := pool.Exec(t.Context(), text, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatal(err)
		}
	}
	// As docs/operations.md says: a login of one's own that migrates, and the files before and after.
	exec(asHere(readDocument(t, "roles.sql")))
	exec(fmt.Sprintf(`create role "%[1]s_deploy" login password 'secret' in role "%[1]s_migrate"; alter role "%[1]s_deploy" set role = '%[1]s_migrate'`, prefix))
	config := pool.Config().ConnConfig
	deploy := pgtest.Connect(t, fmt.Sprintf("host=%s port=%d dbname=%s user='%s_deploy' password=secret sslmode=disable", config.Host, config.Port, config.Database, prefix))
	for range 2 { // and again, when there is nothing to do
		if err := Migrate(t.Context(), deploy); err != nil {
			t.Fatal(err)
		}
		if _, err := deploy.Exec(t.Context(), asHere(readDocument(t, "grants.sql")), pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatal(err)
		}
		exec(asHere(readDocument(t, "roles.sql")))
	}
	const all = `select 'schema', '', p from unnest(array['usage', 'create']) p where has_schema_privilege($1::name, 'romancy', p)
		union all
		select case c.relkind when 'S' then 'sequence' else 'table' end, c.relname, p
		from pg_class c, unnest(array['select', 'insert', 'update', 'delete', 'truncate', 'references', 'trigger', 'usage']) p
		where c.relnamespace = 'romancy'::regnamespace
		  and case when c.relkind in ('r', 'v') and p <> 'usage' then has_table_privilege($1, c.oid, p)
		           when c.relkind = 'S' and p in ('select', 'update', 'usage') then has_sequence_privilege($1, c.oid, p) end
		union all
		select 'table', c.relname, 'insert(' || string_agg(a.attname, ',' order by a.attnum) || ')'
		from pg_class c join pg_attribute a on a.attrelid = c.oid
		where c.relnamespace = 'romancy'::regnamespace and c.relkind in ('r', 'v') and a.attnum > 0 and not a.attisdropped
		  and has_column_privilege($1, c.oid, a.attnum, 'insert') and not has_table_privilege($1, c.oid, 'insert')
		group by c.relname
		union all
		select 'function', f.proname, 'execute' from pg_proc f where f.pronamespace = 'romancy'::regnamespace and has_function_privilege($1, f.oid, 'execute')`
	for _, role := range []string{"romancy_run", "romancy_relay", "romancy_client", "romancy_write", "romancy_subscribe", "romancy_read"} {
		rows, err := pool.Query(t.Context(), all, asHere(role))
		if err != nil {
			t.Fatal(err)
		}
		has, err := pgx.CollectRows(rows, pgx.RowToStructByPos[schema.Privilege])
		if err != nil {
			t.Fatal(err)
		}
		granted := fileGrants(t, role)
		for _, p := range has {
			if !slices.Contains(granted, p) {
				t.Errorf("%s also has %v", role, p)
			}
		}
		for _, p := range granted {
			if !slices.Contains(has, p) {
				t.Errorf("%s does not have %v", role, p)
			}
		}
	}
}

// The role that migrates needs to own the schema, and cannot do without.
func TestWhoMigratesOwnsTheSchema(t *testing.T) {
	t.Parallel()
	r := newRestricted(t)
	r.exec(t, "drop schema romancy cascade")
	r.exec(t, "create schema romancy")
	pool := r.connect(t)
	if err := Migrate(t.Context(), pool); err == nil {
		t.Error("who does not own the schema has migrated it")
	}
	r.exec(t, "alter schema romancy owner to "+pgx.Identifier{r.role}.Sanitize())
	if err := Migrate(t.Context(), pool); err != nil {
		t.Error(err)
	}
}
