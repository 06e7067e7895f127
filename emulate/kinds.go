package emulate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/usbns/usbns/usb"
)

// The devices of this package have identifiers that pid.codes sets aside for
// tests.
const (
	vendorTest         = 0x1209
	productScanner     = 0x0001
	productLoopback    = 0x0002
	productSignpad     = 0x0003
	productFingerprint = 0x0004
	productSerial      = 0x0005
	productDisk        = 0x0006
	productAudio       = 0x0007

	manufacturer = "usbns"
	classVendor  = 0xff
)

// ErrNotConfigured says that there is no host which uses a device at the
// moment, or that it stopped to.
var ErrNotConfigured = errors.New("no host has configured the device")

// Options are what can be chosen of a device that is made by name. The zero
// value is good.
type Options struct {
	// Speed is the speed to run at; 0 is the kind's usual one.
	Speed usb.Speed
	// Serial is the serial number; "" stands for "0001".
	Serial string
	// File is the file that a disk is made of, which takes what is written; ""
	// is 64 MiB of memory.
	File string
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

// describe is what all kinds have in their description.
func (o Options) describe(product uint16, name string) Description {
	d := Description{
		Vendor: vendorTest, Product: product, Version: 0x0100,
		ManufacturerName: manufacturer, ProductName: name, SerialNumber: o.Serial,
	}
	if o.Serial == "" {
		d.SerialNumber = "0001"
	}
	return d
}

// A Teller is a device that can be told to do something in a line of text: a
// scanner to scan it. The error is [ErrNotConfigured] when no host is there to
// notice.
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
	{"signpad", "signature pad (HID pen)", func(o Options) (usb.Device, error) { return NewSignpad(o) }},
	{"fingerprint", "fingerprint reader (vendor class)", func(o Options) (usb.Device, error) { return NewFingerprint(o) }},
	{"serial", "serial adapter (CDC-ACM) that echoes", func(o Options) (usb.Device, error) { return NewSerial(o) }},
	{"disk", "disk (bulk-only mass storage)", openDisk},
	{"audio", "sound card (audio class 1.0) that records what it plays", func(o Options) (usb.Device, error) { return NewAudio(o) }},
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
		if o.File != "" && k.Name != "disk" {
			return nil, fmt.Errorf("make a %s: only a disk is made of a file", kind)
		}
		d, err := k.open(o)
		if err != nil {
			return nil, fmt.Errorf("make a %s: %w", kind, err)
		}
		return d, nil
	}
	return nil, fmt.Errorf("no device is called %q: there are %s", kind, strings.Join(names, ", "))
}
