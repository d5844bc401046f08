// Package pgtest runs a throwaway PostgreSQL for tests, examples and demonstrations, and breaks it on request.
//
// The server comes from the first source that works:
//
//  1. DATABASE_URL, if set: databases with random names are created there and dropped again. The server itself is not
//     ours, so it cannot be stopped or restarted.
//  2. PostgreSQL binaries of version 14 or newer on this machine: pg_config, PATH, and the directories that packages
//     install to. A private server with a random password listens on a free port of 127.0.0.1. As root it runs as an
//     unprivileged user, because PostgreSQL refuses to run as root.
//  3. Binaries downloaded (once) by github.com/fergusstrange/embedded-postgres.
//
// A private server never outlives its process, not even after kill -9, and what a killed process left on the disk is
// removed by the next one.
//
// Proxy breaks connections as a network does; FaultProxy breaks what happens to a chosen execution of a chosen statement.
//
// Tests call Pool or URL, each of which is a database of the test's own, cloned from a migrated template, and leave the
// server's life to Main:
//
//	func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }
package pgtest
