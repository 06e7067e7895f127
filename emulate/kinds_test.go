package emulate

import (
	"strings"
	"testing"

	"github.com/usbns/usbns/usb"
)

func TestOpenEveryKind(t *testing.T) {
	products := make(map[uint16]string)
	for _, k := range Kinds() {
		d, err := Open(k.Name, Options{Serial: "s-17"})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		desc := d.Descriptors()
		if desc.Serial() != "s-17" || desc.Manufacturer() != "usbns" || !strings.HasPrefix(desc.Product(), "usbns ") {
			t.Errorf("%s calls itself %q %q %q", k.Name, desc.Manufacturer(), desc.Product(), desc.Serial())
		}
		if other, taken := products[desc.Device().Product]; taken {
			t.Errorf("%s and %s are both %04x", k.Name, other, desc.Device().Product)
		}
		products[desc.Device().Product] = k.Name
		if k.Summary == "" {
			t.Errorf("%s has no summary", k.Name)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	for want, c := range map[string]struct {
		kind string
		o    Options
	}{
		`no device is called "toaster": there are scanner, signpad, fingerprint, serial, disk, audio, loopback`: {"toaster", Options{}},
		"make a loopback: it cannot run at low speed":                                                           {"loopback", Options{Speed: usb.SpeedLow}},
		"make a scanner: it cannot run at wireless speed":                                                       {"scanner", Options{Speed: usb.SpeedWireless}},
		"make a scanner: only a disk is made of a file":                                                         {"scanner", Options{File: "x"}},
		"make a disk: open /nonexistent/disk":                                                                   {"disk", Options{File: "/nonexistent/disk"}},
		"126":                                                                                                   {"scanner", Options{Serial: strings.Repeat("9", 127)}},
	} {
		d, err := Open(c.kind, c.o)
		if err == nil {
			d.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want one that says %q", err, want)
		}
	}
}
