package store_test

import (
	"os"
	"testing"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// newStore returns the statements for the schema that tests use.
func newStore(t *testing.T) *store.Store {
	t.Helper()
	s, err := store.New("romancy")
	if err != nil {
		t.Fatal(err)
	}
	return s
}
