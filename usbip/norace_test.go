//go:build !race

package usbip

const raceEnabled = false
