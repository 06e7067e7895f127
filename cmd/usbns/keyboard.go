package main

import (
	"fmt"
	"strings"
)

// The key codes of a keyboard's digits and Enter (HID Usage Tables, section
// 10: Keyboard/Keypad Page).
const (
	key1     = 0x1e
	key0     = 0x27
	keyEnter = 0x28
)

// readLine reads the reports of a boot keyboard up to Enter and its release. One
// key at the most is down in a report: a scanner types keys one by one.
func readLine(read func() ([]byte, error)) (string, error) {
	var line strings.Builder
	for {
		report, err := read()
		if err != nil {
			return "", err
		}
		if len(report) != 8 {
			return "", fmt.Errorf("the keyboard reports %x", report)
		}
		switch key := report[2]; {
		case key >= key1 && key < key0:
			line.WriteByte('1' + key - key1)
		case key == key0:
			line.WriteByte('0')
		case key == keyEnter:
			_, err := read()
			return line.String(), err
		}
	}
}
