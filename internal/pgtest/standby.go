package pgtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Standby starts a second server that follows this one asynchronously and answers queries that only read. This one is stopped
// for as long as its files are copied. The standby is stopped when the test ends.
func (s *Server) Standby(t testing.TB) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*patience)
	defer cancel()
	standby, err := s.newStandby(ctx)
	if err != nil {
		t.Fatalf("pgtest: standby: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := standby.Stop(ctx); err != nil {
			t.Errorf("pgtest: stop the standby: %v", err)
		}
	})
	return standby
}

func (s *Server) newStandby(ctx context.Context) (*Server, error) {
	if s.cluster == nil {
		return nil, ErrNotOurs
	}
	if err := s.Halt(ctx, "fast"); err != nil {
		return nil, err
	}
	followed, err := s.cluster.follower(ctx)
	resumed := s.Resume(ctx)
	switch {
	case err != nil:
		return nil, errors.Join(err, resumed)
	case resumed != nil:
		return nil, errors.Join(resumed, followed.remove(ctx))
	}
	if err := followed.launchAnywhere(ctx); err != nil {
		return nil, errors.Join(err, followed.remove(ctx))
	}
	server := &Server{url: followed.url(), cluster: followed}
	server.admin.url = server.url
	return server, nil
}

// follower returns a cluster that follows this one, which is halted, once it is launched.
func (c *cluster) follower(ctx context.Context) (*cluster, error) {
	dir, lock, err := makeDir(c.owner, c.set.keep)
	if err != nil {
		return nil, err
	}
	f := &cluster{programs: c.programs, set: c.set, dir: dir, owner: c.owner, lock: lock, password: c.password}
	if err := f.copyFrom(ctx, c); err != nil {
		return nil, errors.Join(err, f.remove(ctx))
	}
	return f, nil
}

func (c *cluster) copyFrom(ctx context.Context, primary *cluster) error {
	if err := c.owner.copyTree(ctx, c.data(), primary.data()); err != nil {
		return err
	}
	followed, err := url.Parse(primary.url())
	if err != nil {
		return err
	}
	followed.Path = "" // replication has no database
	text := primary.config(ctx) + fmt.Sprintf("primary_conninfo = '%s'\n", followed)
	return errors.Join(
		c.owner.write(filepath.Join(c.data(), "pgtest.conf"), text),
		c.owner.write(filepath.Join(c.data(), "standby.signal"), ""))
}

// copyTree copies a directory of files, which o owns then.
func (o *owner) copyTree(ctx context.Context, to, from string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		relative, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, relative)
		if !entry.IsDir() {
			text, err := os.ReadFile(path) //nolint:gosec // a directory of our own
			if err != nil {
				return err
			}
			return o.write(target, string(text))
		}
		if err := os.Mkdir(target, 0o700); err != nil {
			return err
		}
		return o.own(target)
	})
}

// Follows waits until the standby has replayed all that is committed on primary now.
func (s *Server) Follows(ctx context.Context, primary *Server) error {
	var now string
	if err := ask(ctx, primary.URL(), "select pg_current_wal_flush_lsn()::text", &now); err != nil {
		return err
	}
	for {
		var there bool
		if err := ask(ctx, s.URL(), "select coalesce(pg_last_wal_replay_lsn() >= '"+now+"'::pg_lsn, false)", &there); err != nil || there {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the standby has not reached %s: %w", now, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Unfollow has the standby receive nothing any more, and returns when it does not.
func (s *Server) Unfollow(ctx context.Context) error {
	if err := ask(ctx, s.URL(), "alter system set primary_conninfo = ''", nil); err != nil {
		return err
	}
	if err := ask(ctx, s.URL(), "select pg_reload_conf()", new(bool)); err != nil {
		return err
	}
	for receives := true; receives; {
		if err := ask(ctx, s.URL(), "select exists (select from pg_stat_wal_receiver) or pg_last_wal_receive_lsn() <> pg_last_wal_replay_lsn()", &receives); err != nil {
			return err
		}
	}
	return nil
}

// Promote makes a primary of the standby.
func (s *Server) Promote(ctx context.Context) error {
	promoted := false
	if err := ask(ctx, s.URL(), "select pg_promote(true, 60)", &promoted); err != nil {
		return err
	}
	if !promoted {
		return errors.New("the standby has not been promoted within 60 seconds")
	}
	return nil
}

// ask executes a statement on a connection of its own; into: its one value, nil: it has none.
func ask(ctx context.Context, url, statement string, into any) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	if into == nil {
		_, err = conn.Exec(ctx, statement)
	} else {
		err = conn.QueryRow(ctx, statement).Scan(into)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	return nil
}
