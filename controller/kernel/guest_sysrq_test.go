//go:build guest

package kernel_test

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/controller/kernel"
	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/policy"
	"github.com/usbns/usbns/usb"
)

// bootReport is the report descriptor of a boot keyboard (HID 1.11, appendix
// E.6), without its lights.
var bootReport = []byte{
	0x05, 0x01, 0x09, 0x06, 0xa1, 0x01,
	0x05, 0x07, 0x19, 0xe0, 0x29, 0xe7, 0x15, 0x00, 0x25, 0x01, 0x75, 0x01, 0x95, 0x08, 0x81, 0x02,
	0x95, 0x01, 0x75, 0x08, 0x81, 0x01,
	0x95, 0x06, 0x75, 0x08, 0x25, 0x65, 0x19, 0x00, 0x29, 0x65, 0x81, 0x00,
	0xc0,
}

// altSysRqB are the reports of Alt, Print Screen and B going down one after the
// other, and up again.
var altSysRqB = [][8]byte{{0x04}, {0x04, 0, 0x46}, {0x04, 0, 0x46, 0x05}, {0x04, 0, 0x46}, {0x04}, {}}

// newResetter returns a keyboard that types altSysRqB over and over: Linux drops
// what comes while it opens a keyboard.
func newResetter(t testing.TB) usb.Device {
	t.Helper()
	n := len(bootReport)
	desc, err := emulate.Description{
		Vendor: 0x1209, Product: 0x0011, ProductName: "resetter",
		Configurations: []emulate.Configuration{{Interfaces: []emulate.Interface{{
			Class: 3, SubClass: 1, Protocol: 1,
			Extra:     []byte{9, 0x21, 0x11, 0x01, 0, 1, 0x22, byte(n), byte(n >> 8)},
			Endpoints: []emulate.Endpoint{{Address: 0x81, Type: usb.Interrupt, MaxPacket: 8, Interval: 10}},
		}}}},
	}.Build(usb.SpeedFull)
	must.OK(t, err)
	var sent atomic.Int64
	var typing atomic.Bool
	d, err := emulate.New(emulate.Config{
		Speed: usb.SpeedFull, Descriptors: desc,
		Control: func(u *usb.URB) bool {
			if u.Setup.In() && u.Setup.Value>>8 == 0x22 {
				return emulate.Reply(u, bootReport)
			}
			return emulate.Accept(u)
		},
		Endpoints: map[usb.Address]emulate.Handler{0x81: func(u *usb.URB) bool {
			if !typing.Swap(false) {
				return false
			}
			report := altSysRqB[sent.Add(1)%int64(len(altSysRqB))]
			return emulate.Reply(u, report[:])
		}},
	})
	must.OK(t, err)
	pace := time.NewTicker(10 * time.Millisecond) // of people, nearly
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-pace.C:
				typing.Store(true)
				d.Wake(0x81)
			case <-d.Gone():
				return
			}
		}
	}()
	t.Cleanup(func() {
		d.Close()
		<-done
		pace.Stop()
	})
	return d
}

// attachKeyboard attaches a resetter and waits for two presses of B.
func attachKeyboard(t *testing.T, d *kernel.Driver) {
	t.Helper()
	a, err := d.Attach(t.Context(), exportDevice(t, newResetter(t)))
	must.OK(t, err)
	defer a.Detach()
	events := openInput(t, a.Path())
	defer events.Close()
	for presses := 0; presses < 2; {
		var e struct {
			Sec, Usec  int64
			Type, Code uint16
			Value      int32
		}
		must.OK(t, binary.Read(events, binary.NativeEndian, &e))
		const keyB = 48
		if e.Type == 1 && e.Code == keyB && e.Value == 1 {
			presses++
		}
	}
}

// TestReset is for TestAltSysRqBResets alone: it does not come to its end.
func TestReset(t *testing.T) {
	attachKeyboard(t, newGuestDriver(t))
	t.Error("the machine was not reset")
}

// A keyboard is kept out unless it is allowed, which is refused where it would be
// harmful; where system requests are off it types like any other.
func TestGuestAltSysRqBDoesNotReset(t *testing.T) {
	d := newGuestDriver(t)
	var table controller.Table
	defer table.Close()
	made, err := table.Create(controller.Config{Driver: d, Policy: policy.Guarded()}, 1)
	must.OK(t, err)
	_, err = made[0].Attach(t.Context(), 0, exportDevice(t, newResetter(t)))
	if r, refused := errors.AsType[*policy.Refusal](err); !refused {
		t.Fatalf("attach by a controller's default: %v", err)
	} else {
		t.Log(r)
	}
	if err := (policy.Host{}).KeyboardSafe(); err == nil {
		t.Error("the guest as it is after boot is said to be safe from keyboards")
	}
	before, err := os.ReadFile("/proc/sys/kernel/sysrq")
	must.OK(t, err)
	must.OK(t, os.WriteFile("/proc/sys/kernel/sysrq", []byte("0"), 0))
	t.Cleanup(func() { must.OK(t, os.WriteFile("/proc/sys/kernel/sysrq", before, 0)) })
	attachKeyboard(t, d)
}

// openInput opens the input device below a device's path when it is there.
func openInput(t testing.TB, path string) *os.File {
	t.Helper()
	for deadline := time.Now().Add(patient); ; time.Sleep(5 * time.Millisecond) {
		found, _ := filepath.Glob(filepath.Join(path, "*:*/*/input/input*/event*"))
		if len(found) > 0 {
			f, err := os.Open(filepath.Join("/dev/input", filepath.Base(found[0])))
			must.OK(t, err)
			return f
		}
		if time.Now().After(deadline) {
			t.Fatal("no input device")
		}
	}
}
