//go:build linux

package guard

import (
	"slices"
	"strings"
	"testing"
)

const procDevices = `Character devices:
  1 mem
 13 input
189 usb_device
241 hidraw
240 nvidia-uvm
386 hidraw
254 gpiochip

Block devices:
  8 sd
252 device-mapper
`

func TestRuled(t *testing.T) {
	registered, err := parseDevices(strings.NewReader(procDevices))
	if err != nil {
		t.Fatal(err)
	}
	set := rule(registered)
	for d, want := range map[Device]bool{
		{false, 1, anyMinor}:   false,
		{false, 13, anyMinor}:  true,
		{false, 189, anyMinor}: true,
		{false, 188, anyMinor}: true, // nobody has registered it
		{false, 241, anyMinor}: true,
		{false, 386, anyMinor}: true,
		{false, 254, anyMinor}: true,
		{false, 240, anyMinor}: false,
		{false, 242, anyMinor}: true, // anybody can get it
		{true, 8, anyMinor}:    true,
		{true, 252, anyMinor}:  false,
		{true, 253, anyMinor}:  true,
		{false, 10, anyMinor}:  false,
		{false, 10, 223}:       true,
	} {
		if set[d] != want {
			t.Errorf("%v is ruled over: %v, want %v", d, set[d], want)
		}
	}
	if len(set) > maxRules/2 {
		t.Errorf("%d rules are too many", len(set))
	}
	if _, err := parseDevices(strings.NewReader("Block devices:\nx sd\n")); err == nil {
		t.Error("a number that is none is taken")
	}
}

func TestRuledHere(t *testing.T) {
	set, err := ruled()
	if err != nil {
		t.Fatal(err)
	}
	if set[Device{false, 1, anyMinor}] || !set[Device{false, 189, anyMinor}] {
		t.Error("/proc/devices was not understood")
	}
}

func TestClasses(t *testing.T) {
	registered, err := parseDevices(strings.NewReader(procDevices))
	if err != nil {
		t.Fatal(err)
	}
	list := classes(registered)
	for d, want := range map[Device]bool{
		{Major: 1}:                false,
		{Major: 13}:               true,
		{Major: 188}:              true, // nobody has registered it
		{Major: 241}:              true,
		{Major: 240}:              false,
		{Major: 242}:              false, // nor this, which anybody can get
		{Major: 10}:               false,
		{Block: true, Major: 8}:   true,
		{Block: true, Major: 252}: false,
	} {
		if got := slices.Contains(list, d); got != want {
			t.Errorf("%s %d is a class: %v, want %v", d.Kind(), d.Major, got, want)
		}
	}
}
