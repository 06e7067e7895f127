//go:build guest

package kernel_test

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/policy"
	"github.com/usbns/usbns/usb"
)

// buttonsReport is the report descriptor of a mouse, a joystick, a game pad and a
// pointer of no kind, each with so many buttons.
func buttonsReport(n byte) (report []byte) {
	for id, application := range []byte{0x02, 0x04, 0x05, 0x08} {
		report = append(report,
			0x05, 0x01, 0x09, application, 0xa1, 0x01, 0x85, byte(id+1), 0x09, 0x01, 0xa1, 0x00,
			0x05, 0x09, 0x19, 0x01, 0x29, n, 0x15, 0x00, 0x25, 0x01, 0x95, n, 0x75, 0x01, 0x81, 0x02,
			0x05, 0x01, 0x09, 0x30, 0x09, 0x31, 0x15, 0x81, 0x25, 0x7f, 0x75, 0x08, 0x95, 0x02, 0x81, 0x06,
			0xc0, 0xc0)
	}
	return report
}

// twinsReport is the report descriptor of a mouse whose only button is there 96
// times.
var twinsReport = []byte{
	0x05, 0x01, 0x09, 0x02, 0xa1, 0x01, 0x09, 0x01, 0xa1, 0x00,
	0x05, 0x09, 0x09, 0x01, 0x15, 0x00, 0x25, 0x01, 0x95, 96, 0x75, 0x01, 0x81, 0x02,
	0x05, 0x01, 0x09, 0x30, 0x09, 0x31, 0x15, 0x81, 0x25, 0x7f, 0x75, 0x08, 0x95, 0x02, 0x81, 0x06,
	0xc0, 0xc0,
}

// pagesReport is the report descriptor of a mouse with the first usages of some
// pages. With many pages the kernel takes long.
func pagesReport(pages ...uint16) []byte {
	report := []byte{0x05, 0x01, 0x09, 0x02, 0xa1, 0x01, 0x09, 0x01, 0xa1, 0x00}
	for _, p := range pages {
		report = append(report, 0x06, byte(p), byte(p>>8), 0x19, 0x01, 0x29, 0x5f,
			0x15, 0x00, 0x25, 0x01, 0x95, 0x5f, 0x75, 0x01, 0x81, 0x02)
	}
	return append(report, 0xc0, 0xc0)
}

// newButtons returns a device of a report descriptor that reports nothing.
func newButtons(t testing.TB, vendor, product uint16, report []byte) usb.Device {
	t.Helper()
	n := len(report)
	desc, err := emulate.Description{
		Vendor: vendor, Product: product, ProductName: "buttons",
		Configurations: []emulate.Configuration{{Interfaces: []emulate.Interface{{
			Class:     3,
			Extra:     []byte{9, 0x21, 0x11, 0x01, 0, 1, 0x22, byte(n), byte(n >> 8)},
			Endpoints: []emulate.Endpoint{{Address: 0x81, Type: usb.Interrupt, MaxPacket: 64, Interval: 10}},
		}}}},
	}.Build(usb.SpeedFull)
	must.OK(t, err)
	d, err := emulate.New(emulate.Config{
		Speed: usb.SpeedFull, Descriptors: desc,
		Control: func(u *usb.URB) bool {
			if u.Setup.In() && u.Setup.Value>>8 == 0x22 {
				return emulate.Reply(u, report)
			}
			return emulate.Accept(u)
		},
	})
	must.OK(t, err)
	return d
}

// keys returns the codes of all keys that the kernel's input devices have of a
// device.
func keys(t testing.TB, path string) (codes []int) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(path, "*:*/*/input/input*/capabilities/key"))
	must.OK(t, err)
	for _, name := range found {
		text, err := os.ReadFile(name)
		must.OK(t, err)
		words := strings.Fields(string(text))
		slices.Reverse(words) // the lowest come last
		for i, word := range words {
			bits, err := strconv.ParseUint(word, 16, 64)
			must.OK(t, err)
			for bit := range 64 {
				if bits>>bit&1 != 0 {
					codes = append(codes, 64*i+bit)
				}
			}
		}
	}
	return codes
}

// Of what a policy takes the kernel makes buttons at the most. Of the rest it makes
// keys, one that turns the machine off among them.
func TestGuestButtonsAreNoKeys(t *testing.T) {
	must.NotLeak(t)
	d := newGuestDriver(t)
	const misc, ok, happy = 0x100, 0x160, 0x2c0 // BTN_MISC, KEY_OK, BTN_TRIGGER_HAPPY
	guarded := policy.Guarded()
	for name, x := range map[string]struct {
		vendor, product uint16
		report          []byte
		taken           bool
	}{
		"48 buttons":                   {0x1209, 0x0012, buttonsReport(48), true},
		"85 buttons":                   {0x1209, 0x0012, buttonsReport(85), false},
		"pages without keys":           {0x1209, 0x0012, pagesReport(0x02, 0x03, 0x05, 0x08), true},
		"more of them":                 {0x1209, 0x0012, pagesReport(0x0f, 0x14, 0x20, 0x40, 0xff00, 0xffff), true},
		"HP's pages":                   {0x1209, 0x0012, pagesReport(0xff01, 0xff7f), false},
		"twins":                        {0x1209, 0x0012, twinsReport, true},
		"twins that the kernel shifts": {0x06a3, 0x0b6a, twinsReport, false},
	} {
		t.Run(name, func(t *testing.T) {
			var judged error
			p := exportDevice(t, newButtons(t, x.vendor, x.product, x.report))
			p.Judge = func(desc *usb.Descriptors) error {
				judged = guarded.Judge(p.Speed, desc, 0)
				return nil
			}
			a, err := d.Attach(t.Context(), p)
			must.OK(t, err)
			codes := keys(t, a.Path())
			a.Detach()
			if (judged == nil) != x.taken {
				t.Errorf("judged: %v", judged)
			}
			bad := slices.ContainsFunc(codes, func(code int) bool { return code < misc || code >= ok && code < happy })
			if len(codes) == 0 || bad == x.taken {
				t.Errorf("the kernel has keys %#x of it", codes)
			}
		})
	}
}
