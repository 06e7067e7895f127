package emulate

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/usbns/usbns/usb"
)

// The devices of this package have identifiers that pid.codes sets aside for
// tests.
const (
	vendorTest      = 0x1209
	productScanner  = 0x0001
	productLoopback = 0x0002

	manufacturer = "usbns"
	classVendor  = 0xff
)

// Options are what can be chosen of a device that is made by name. The zero
// value is good.
type Options struct {
	// Speed is the speed to run at; 0 is the kind's usual one.
	Speed usb.Speed
	// Serial is the serial number; "" stands for "0001".
	Serial string
}

// speed is the one that was asked for, if it is at least the slowest at which
// such a device can exist, or the usual one.
func (o Options) speed(usual, slowest usb.Speed) (usb.Speed, error) {
	switch {
	case o.Speed == usb.SpeedUnknown:
		return usual, nil
	case !o.Speed.Valid() || o.Speed == usb.SpeedWireless || o.Speed < slowest:
		return 0, fmt.Errorf("it cannot run at %v speed", o.Speed)
	}
	return o.Speed, nil
}

func (o Options) serial() string {
	if o.Serial == "" {
		return "0001"
	}
	return o.Serial
}

// A Teller is a device that can be told to do something in a line of text: a
// scanner to scan it.
type Teller interface {
	Tell(ctx context.Context, text string) error
}

// A Kind is a device that can be made by its name.
type Kind struct {
	Name    string
	Summary string // a few words
	open    func(Options) (usb.Device, error)
}

var kinds = []Kind{
	{"scanner", "bar-code scanner (HID keyboard)", func(o Options) (usb.Device, error) { return NewScanner(o) }},
	{"loopback", "echo for tests (vendor class)", func(o Options) (usb.Device, error) { return NewLoopback(o) }},
}

// Kinds returns all kinds of devices.
func Kinds() []Kind { return slices.Clone(kinds) }

// Open makes a device of the kind of that name. It is gone when it is closed.
func Open(kind string, o Options) (usb.Device, error) {
	var names []string
	for _, k := range kinds {
		if k.Name != kind {
			names = append(names, k.Name)
			continue
		}
		d, err := k.open(o)
		if err != nil {
			return nil, fmt.Errorf("make a %s: %w", kind, err)
		}
		return d, nil
	}
	return nil, fmt.Errorf("no device is called %q: there are %s", kind, strings.Join(names, ", "))
}
