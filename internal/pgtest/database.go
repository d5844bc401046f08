package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/schema"
)

// admin creates and drops databases over one connection, one at a time: a template cannot be cloned twice at once, and
// the connection is no pool so that an idle server costs no goroutine.
type admin struct {
	url string

	mu       sync.Mutex
	conn     *pgx.Conn
	template string // "" until the first clone
	closed   bool
}

// errStopped is returned for databases asked for after Stop.
var errStopped = errors.New("the server has been stopped")

// CreateDatabase returns a fresh database with the library's schema, cloned from a template in milliseconds. Drop
// removes it, ending the sessions in it.
func (s *Server) CreateDatabase(ctx context.Context) (dbURL string, drop func(context.Context) error, err error) {
	return s.admin.create(ctx, true)
}

// CreateEmptyDatabase returns a fresh database without the library's schema.
func (s *Server) CreateEmptyDatabase(ctx context.Context) (dbURL string, drop func(context.Context) error, err error) {
	return s.admin.create(ctx, false)
}

func (a *admin) create(ctx context.Context, migrated bool) (string, func(context.Context) error, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	template := "template0"
	if migrated {
		if err := a.ensureTemplate(ctx); err != nil {
			return "", nil, fmt.Errorf("template database: %w", err)
		}
		template = a.template
	}
	name := randomName("test")
	if err := a.exec(ctx, "create database "+name+" template "+template); err != nil {
		return "", nil, fmt.Errorf("create a database: %w", err)
	}
	drop := func(ctx context.Context) error {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.closed {
			return nil // gone with its server, or its server is no longer ours to touch
		}
		if err := a.exec(ctx, "drop database if exists "+name+" with (force)"); err != nil {
			return fmt.Errorf("drop database %s: %w", name, err)
		}
		return nil
	}
	dbURL, err := databaseURL(a.url, name)
	return dbURL, drop, err
}

// ensureTemplate creates the migrated database that all others are cloned from. Called with a.mu held.
func (a *admin) ensureTemplate(ctx context.Context) error {
	if a.template != "" {
		return nil
	}
	name := randomName("template")
	if err := a.exec(ctx, "create database "+name+" template template0"); err != nil {
		return err
	}
	if err := a.fillTemplate(ctx, name); err != nil {
		return errors.Join(err, a.exec(ctx, "drop database if exists "+name+" with (force)"))
	}
	// A single session in the template makes CREATE DATABASE fail.
	if err := a.exec(ctx, "alter database "+name+" allow_connections false"); err != nil {
		return err
	}
	a.template = name
	return nil
}

func (a *admin) fillTemplate(ctx context.Context, name string) error {
	dbURL, err := databaseURL(a.url, name)
	if err != nil {
		return err
	}
	pool, err := pgxpool.New(ctx, dbURL)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := schema.Migrate(ctx, pool, schema.Default); err != nil {
		return err
	}
	// Tests that count statements need the view; without the preloaded library it would only fail when read.
	_, err = pool.Exec(ctx, `do $$ begin
		if current_setting('shared_preload_libraries') like '%pg_stat_statements%'
			and exists (select from pg_available_extensions where name = 'pg_stat_statements')
			and (select rolsuper from pg_roles where rolname = current_user)
		then
			create extension pg_stat_statements;
		end if;
	end $$`)
	return err
}

// exec runs one statement, over a new connection if the last one broke (a restarted server). Called with a.mu held.
func (a *admin) exec(ctx context.Context, statement string) error {
	if a.closed {
		return errStopped
	}
	if a.conn != nil && a.conn.Ping(ctx) != nil {
		a.disconnect()
	}
	if a.conn == nil {
		conn, err := pgx.Connect(ctx, a.url)
		if err != nil {
			return err
		}
		a.conn = conn
	}
	_, err := a.conn.Exec(ctx, statement)
	return err
}

func (a *admin) disconnect() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = a.conn.Close(ctx)
	a.conn = nil
}

// close ends the connection and, on a server that stays, removes the template.
func (a *admin) close(ctx context.Context, dropTemplate bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil
	}
	var err error
	if dropTemplate && a.template != "" {
		err = a.exec(ctx, "drop database if exists "+a.template+" with (force)")
	}
	if a.conn != nil {
		a.disconnect()
	}
	a.closed = true
	return err
}

func randomName(kind string) string {
	return "romancy_" + kind + "_" + strings.ToLower(rand.Text()[:12])
}

// databaseURL is server with another database.
func databaseURL(server, name string) (string, error) {
	parsed, err := url.Parse(server)
	if err != nil {
		return "", err
	}
	parsed.Path = "/" + name
	query := parsed.Query()
	query.Del("dbname")
	parsed.RawQuery = query.Encode()
	return parsed.String(), nil
}
