package pgtest

import "os"

// Soak returns the size of a test that hunts for what is rare: full with ROMANCY_SOAK=1 in the environment (make soak),
// reduced otherwise, which must be enough to fail on an implementation that plainly has the defect.
func Soak(full, reduced int) int {
	if os.Getenv("ROMANCY_SOAK") == "1" {
		return full
	}
	return reduced
}
