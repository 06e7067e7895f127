//go:build guest

//vmexec:modules vhci-hcd

package emulatetest_test

import (
	"testing"

	"github.com/usbns/usbns/emulate/emulatetest"
	"github.com/usbns/usbns/internal/usbfstest"
	"github.com/usbns/usbns/usb"
)

// throughKernel puts a device into the kernel and takes it out again through
// usbfs. No module of a class driver is loaded.
func throughKernel(open func(*testing.T) usb.Device) func(*testing.T) usb.Device {
	return func(t *testing.T) usb.Device { return usbfstest.Attach(t, open(t)) }
}

// Each test costs an attach and a detach. What audio has in common with loopback
// is shown with that.
func TestGuestThroughKernel(t *testing.T) {
	t.Run("loopback", func(t *testing.T) {
		emulatetest.Run(t, testsFor("loopback"), throughKernel(open("loopback", usb.SpeedSuper)))
	})
	t.Run("audio", func(t *testing.T) {
		emulatetest.Run(t, emulatetest.Audio, throughKernel(open("audio", usb.SpeedHigh)))
	})
}
