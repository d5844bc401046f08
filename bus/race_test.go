//go:build race

package bus

// raceEnabled: everything takes several times as long.
const raceEnabled = true
