package main

import (
	"io"
	"os"
	"strings"
	"testing"

	"github.com/romancy-go/romancy/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// The quick start does, on an empty database, what its comment says.
func TestQuickStart(t *testing.T) { //nolint:paralleltest // it uses the process's environment and standard output
	t.Setenv("DATABASE_URL", pgtest.EmptyURL(t))
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout := os.Stdout
	os.Stdout = writer
	main()
	os.Stdout = stdout
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	said, err := io.ReadAll(reader)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.TrimSpace(string(said)), "receipt for 4200 cents <nil>\nshut down: <nil>"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
}
