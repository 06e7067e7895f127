//go:build guest

//vmexec:modules vhci-hcd

package emulatetest_test

import (
	"testing"

	"github.com/usbns/usbns/emulate/emulatetest"
	"github.com/usbns/usbns/internal/usbfstest"
	"github.com/usbns/usbns/usb"
)

// TestGuestThroughKernel puts each kind of device into the kernel and takes it out
// again through usbfs. No module of a class driver is loaded. To attach is what
// takes time, so the tests of a kind have one port, and each a device that has been
// reset.
func TestGuestThroughKernel(t *testing.T) {
	for kind, speed := range map[string]usb.Speed{
		"audio":       usb.SpeedHigh,
		"disk":        usb.SpeedHigh,
		"fingerprint": usb.SpeedFull,
		"loopback":    usb.SpeedSuper,
		"serial":      usb.SpeedFull,
		"signpad":     usb.SpeedFull,
	} {
		t.Run(kind, func(t *testing.T) {
			port := usbfstest.Attach(t, open(kind, speed)(t))
			emulatetest.Run(t, testsFor(kind), func(t *testing.T) usb.Device { return port.Open(t) })
		})
	}
}
