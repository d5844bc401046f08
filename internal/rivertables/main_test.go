package rivertables_test

import (
	"os"
	"testing"

	"github.com/romancy-go/romancy/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }
