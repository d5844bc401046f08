package pgtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// ErrNotOurs is returned by Halt, Resume and Restart on a server that DATABASE_URL names.
var ErrNotOurs = errors.New("the server is the one DATABASE_URL names and not ours to stop: unset DATABASE_URL to use a private server")

// Server is a PostgreSQL to create databases on. Its methods are safe for concurrent use.
type Server struct {
	url string

	// cluster is nil for a server that is not ours.
	cluster *cluster

	admin admin
}

// Start returns a running server from the first source that works (see the package comment). The caller must call Stop.
// The error says what to install if there is none.
func Start(ctx context.Context, opts ...Option) (*Server, error) {
	var set settings
	for _, opt := range opts {
		opt(&set)
	}
	if external := os.Getenv("DATABASE_URL"); external != "" && !set.private {
		return attach(ctx, external)
	}
	owner, err := findOwner()
	if err != nil {
		return nil, err
	}
	programs, err := machine(ctx).find(ctx, owner)
	if err != nil {
		return nil, err
	}
	cluster, err := newCluster(ctx, programs, owner, set)
	if err != nil {
		return nil, fmt.Errorf("private PostgreSQL server (%s): %w", programs.dir, err)
	}
	server := &Server{url: cluster.url(), cluster: cluster}
	server.admin.url = server.url
	return server, nil
}

// attach uses a server that is already running.
func attach(ctx context.Context, external string) (*Server, error) {
	config, err := pgx.ParseConfig(external)
	if err != nil {
		return nil, fmt.Errorf("DATABASE_URL: %w", err)
	}
	if _, err := url.Parse(external); err != nil || !strings.Contains(external, "://") {
		return nil, errors.New("DATABASE_URL: write it as a URL, postgres://user:password@host:port/database")
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("DATABASE_URL: %w (unset it to use a private server)", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var version int
	if err := conn.QueryRow(ctx, "select current_setting('server_version_num')::int").Scan(&version); err != nil {
		return nil, fmt.Errorf("DATABASE_URL: read the server's version: %w", err)
	}
	if version/10000 < minVersion {
		return nil, fmt.Errorf("DATABASE_URL: the server is PostgreSQL %d, want %d or newer", version/10000, minVersion)
	}
	server := &Server{url: external}
	server.admin.url = external
	return server, nil
}

// URL is the address of the maintenance database.
func (s *Server) URL() string { return s.url }

// Dir is the directory that holds all of a private server's files, its log (server.log) among them; "" if the server is
// not ours.
func (s *Server) Dir() string {
	if s.cluster == nil {
		return ""
	}
	return s.cluster.dir
}

// PID is the process id of a private server, 0 if it is halted or not ours.
func (s *Server) PID() int {
	if s.cluster == nil {
		return 0
	}
	return s.cluster.pid()
}

// Stop removes everything: the template on a server that is not ours, else the server and its files. It does not wait
// for clients. Calling it again does nothing.
func (s *Server) Stop(ctx context.Context) error {
	err := s.admin.close(ctx, s.cluster == nil)
	if s.cluster != nil {
		err = errors.Join(err, s.cluster.remove(ctx))
	}
	return err
}

// Halt stops the server, keeping its data. Mode is "fast" (sessions are told, a checkpoint is written) or "immediate"
// (as in a crash: the next start recovers). It returns ErrNotOurs for a server that is not ours.
func (s *Server) Halt(ctx context.Context, mode string) error {
	if s.cluster == nil {
		return ErrNotOurs
	}
	return s.cluster.halt(ctx, mode)
}

// Resume starts a halted server again, with the same address and data, and waits until it accepts connections. It
// returns ErrNotOurs for a server that is not ours.
func (s *Server) Resume(ctx context.Context) error {
	if s.cluster == nil {
		return ErrNotOurs
	}
	return s.cluster.resume(ctx)
}

// Restart is Halt and Resume.
func (s *Server) Restart(ctx context.Context, mode string) error {
	if err := s.Halt(ctx, mode); err != nil {
		return err
	}
	return s.Resume(ctx)
}

// freePort returns a port of 127.0.0.1 that nobody listens on just now. It prefers ports below the usual range of
// outgoing connections: while a server is halted, no client's own port can then be the server's.
func freePort() (int, error) {
	const low, high = 15000, 30000
	for range 50 {
		port := low + rand.IntN(high-low)
		listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return port, listener.Close()
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("no free port on 127.0.0.1: %w", err)
	}
	port := listener.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // a TCP listener has a TCP address
	return port, listener.Close()
}
