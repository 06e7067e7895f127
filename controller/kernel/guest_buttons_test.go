//go:build guest

package kernel_test

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/usbns/usbns/controller"
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

// newButtons returns a device of a report descriptor that reports nothing.
func newButtons(t testing.TB, report []byte) usb.Device {
	t.Helper()
	n := len(report)
	desc, err := emulate.Description{
		Vendor: 0x1209, Product: 0x0012, ProductName: "buttons",
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

// Of buttons that a policy takes the kernel makes buttons. Of more it makes keys,
// one that turns the machine off among them.
func TestGuestButtonsAreNoKeys(t *testing.T) {
	must.NotLeak(t)
	d := newGuestDriver(t)
	const most, more = 0x30, 0x55
	const misc, ok, power2, happy = 0x100, 0x160, 0x164, 0x2c0 // BTN_MISC, KEY_OK, KEY_POWER2, BTN_TRIGGER_HAPPY
	guarded := policy.Guarded()
	judged := func(n byte) controller.Plug {
		p := exportDevice(t, newButtons(t, buttonsReport(n)))
		p.Judge = func(desc *usb.Descriptors) error { return guarded.Judge(p.Speed, desc, 0) }
		return p
	}
	a, err := d.Attach(t.Context(), judged(most))
	must.OK(t, err)
	codes := keys(t, a.Path())
	a.Detach()
	if len(codes) < most {
		t.Errorf("the kernel makes %d keys of %d buttons", len(codes), most)
	}
	for _, code := range codes {
		if code < misc || code >= ok && code < happy {
			t.Errorf("the kernel makes key %#x of a button", code)
		}
	}
	_, err = d.Attach(t.Context(), judged(more))
	must.Is(t, err, controller.ErrRefused)
	p := judged(more)
	p.Judge = nil
	a, err = d.Attach(t.Context(), p)
	must.OK(t, err)
	if !slices.Contains(keys(t, a.Path()), power2) {
		t.Errorf("the kernel makes no key %#x of %d buttons", power2, more)
	}
	a.Detach()
}
