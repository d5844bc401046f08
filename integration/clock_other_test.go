//go:build !(linux && amd64)

package integration_test

import (
	"errors"
	"time"
)

const canSetClock = false

func setClock(time.Duration) error {
	return errors.New("only possible on Linux on amd64")
}
