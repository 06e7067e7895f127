package policy

import (
	"fmt"
	"strings"
)

// A Class is a kind of function, as far as policies tell them apart.
type Class uint8

// The classes. What USB calls so is a number of one to three bytes; see
// classesOf.
const (
	Other Class = iota // a class of USB that has no word here
	Audio
	Bluetooth
	HID // what cannot type
	Hub
	Image // cameras and scanners for paper
	Keyboard
	Network
	Printer
	Serial
	SmartCard
	Storage
	Vendor // the vendor's own: whatever driver claims the device's numbers
	Video
	numClasses
)

var words = [numClasses]struct{ word, is string }{
	Other:     {"other", "is of no class that has a name here"},
	Audio:     {"audio", "is for audio"},
	Bluetooth: {"bluetooth", "is a Bluetooth adapter"},
	HID:       {"hid", "is an input device"},
	Hub:       {"hub", "is a hub"},
	Image:     {"image", "is for still images"},
	Keyboard:  {"keyboard", "can type or press power keys"},
	Network:   {"network", "is a network interface"},
	Printer:   {"printer", "is a printer"},
	Serial:    {"serial", "is a serial port"},
	SmartCard: {"smartcard", "is a smart card reader"},
	Storage:   {"storage", "is a disk"},
	Vendor:    {"vendor", "is of the vendor's own class"},
	Video:     {"video", "is for video"},
}

func (c Class) String() string {
	if c >= numClasses {
		return fmt.Sprintf("class(%d)", uint8(c))
	}
	return words[c].word
}

func (c Class) is() string { return words[c].is + " (class " + c.String() + ")" }

// Classes is a set of classes. Its text is their words with commas between
// them, or "all".
type Classes uint32

// All has every class.
const All Classes = 1<<numClasses - 1

func of(classes ...Class) (s Classes) {
	for _, c := range classes {
		s |= 1 << c
	}
	return s
}

func (s Classes) without(classes ...Class) Classes { return s &^ of(classes...) }

// Has reports whether a class is in the set.
func (s Classes) Has(c Class) bool { return s&of(c) != 0 }

// List returns the classes in the set.
func (s Classes) List() (list []Class) {
	for c := range numClasses {
		if s.Has(c) {
			list = append(list, c)
		}
	}
	return list
}

func (s Classes) String() string {
	if s == All {
		return "all"
	}
	var b []string
	for _, c := range s.List() {
		b = append(b, c.String())
	}
	return strings.Join(b, ",")
}

// MarshalText implements encoding.TextMarshaler.
func (s Classes) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Classes) UnmarshalText(text []byte) error {
	*s = 0
	if len(text) == 0 {
		return nil
	}
	for word := range strings.SplitSeq(string(text), ",") {
		c, err := parseClasses(word)
		if err != nil {
			return err
		}
		*s |= c
	}
	return nil
}

// parseClasses reads one word.
func parseClasses(word string) (Classes, error) {
	if word == "all" {
		return All, nil
	}
	for c := range numClasses {
		if words[c].word == word {
			return of(c), nil
		}
	}
	return 0, fmt.Errorf("%.40q is no class of devices: there are %s, and all", word, strings.ReplaceAll((All&^of(Other)).String(), ",", ", ")+", other")
}
