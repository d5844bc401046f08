package integration_test

import (
	"os"
	"testing"

	"github.com/romancy-go/romancy/internal/pgtest"
)

func TestMain(m *testing.M) {
	if config := os.Getenv(crashRole); config != "" {
		os.Exit(runCrashWorker(config)) // this process was started by a test, to be a worker
	}
	os.Exit(pgtest.Main(m))
}
