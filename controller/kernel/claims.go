//go:build linux

package kernel

import (
	"github.com/usbns/usbns/policy"
	"github.com/usbns/usbns/usb"
)

// Claims implements [controller.Claimer] with the modules of this machine's kernel.
func (d *Driver) Claims(desc *usb.Descriptors) ([]policy.Claim, error) {
	return policy.Host{}.Claims(desc)
}

// Claims implements [controller.Claimer].
func (x *Direct) Claims(desc *usb.Descriptors) ([]policy.Claim, error) { return x.d.Claims(desc) }
