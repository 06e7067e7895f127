package emulatetest_test

import (
	"testing"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/emulate/emulatetest"
	"github.com/usbns/usbns/usb"
)

func open(kind string, speed usb.Speed) func(*testing.T) usb.Device {
	return func(t *testing.T) usb.Device {
		d, err := emulate.Open(kind, emulate.Options{Speed: speed})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
}

func TestDirect(t *testing.T) {
	for _, k := range emulate.Kinds() {
		t.Run(k.Name, func(t *testing.T) {
			emulatetest.Run(t, emulatetest.Device, open(k.Name, usb.SpeedUnknown))
		})
	}
}

func TestDirectLoopback(t *testing.T) {
	for _, speed := range []usb.Speed{usb.SpeedFull, usb.SpeedHigh, usb.SpeedSuper} {
		t.Run(speed.String(), func(t *testing.T) {
			emulatetest.Run(t, emulatetest.Device, open("loopback", speed))
			emulatetest.Run(t, emulatetest.Loopback, open("loopback", speed))
		})
	}
}
