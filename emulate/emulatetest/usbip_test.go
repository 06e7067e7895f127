package emulatetest_test

import (
	"testing"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/emulate/emulatetest"
	"github.com/usbns/usbns/internal/usbiptest"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
)

func importFrom(t *testing.T, addr, busid string) usb.Device {
	t.Helper()
	conn, err := usbip.Dial(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	d, err := usbip.Import(t.Context(), conn, busid, nil)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// overTCP exports a device on this machine and imports it again.
func overTCP(open func(*testing.T) usb.Device) func(*testing.T) usb.Device {
	return func(t *testing.T) usb.Device {
		return importFrom(t, usbiptest.Export(t, "127.0.0.1:0", open(t)), "1-1")
	}
}

func TestOverTCP(t *testing.T) {
	for _, k := range emulate.Kinds() {
		t.Run(k.Name, func(t *testing.T) {
			emulatetest.Run(t, testsFor(k.Name), overTCP(open(k.Name, usb.SpeedUnknown)))
		})
	}
}

func TestOverTCPAtOtherSpeeds(t *testing.T) {
	for _, speed := range []usb.Speed{usb.SpeedFull, usb.SpeedSuper} {
		t.Run(speed.String(), func(t *testing.T) {
			emulatetest.Run(t, testsFor("loopback"), overTCP(open("loopback", speed)))
		})
	}
}

// Two exporters in a chain: the second one exports what it has imported.
func TestOverTwo(t *testing.T) {
	for _, kind := range []string{"loopback", "audio"} {
		t.Run(kind, func(t *testing.T) {
			emulatetest.Run(t, testsFor(kind), overTCP(overTCP(open(kind, usb.SpeedUnknown))))
		})
	}
}
