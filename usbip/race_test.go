//go:build race

package usbip

// raceEnabled tells that sync.Pool forgets things at random.
const raceEnabled = true
