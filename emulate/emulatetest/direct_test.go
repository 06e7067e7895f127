package emulatetest_test

import (
	"maps"
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

// testsFor returns the tests that fit a kind of device.
func testsFor(kind string) map[string]emulatetest.Test {
	tests := maps.Clone(emulatetest.Device)
	switch kind {
	case "audio": // has isochronous endpoints only
		maps.Copy(tests, emulatetest.Audio)
	case "loopback":
		maps.Copy(tests, emulatetest.Loopback)
		fallthrough
	default:
		maps.Copy(tests, emulatetest.Endpoints)
	}
	return tests
}

func TestDirect(t *testing.T) {
	for _, k := range emulate.Kinds() {
		t.Run(k.Name, func(t *testing.T) {
			emulatetest.Run(t, testsFor(k.Name), open(k.Name, usb.SpeedUnknown))
		})
	}
}

func TestDirectAtOtherSpeeds(t *testing.T) {
	for _, speed := range []usb.Speed{usb.SpeedFull, usb.SpeedSuper} {
		t.Run(speed.String(), func(t *testing.T) {
			emulatetest.Run(t, testsFor("loopback"), open("loopback", speed))
		})
	}
}
