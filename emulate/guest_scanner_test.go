//go:build guest

package emulate_test

import (
	"encoding/binary"
	"os"
	"testing"
	"unsafe"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/usb"
)

// An inputEvent is struct input_event of include/uapi/linux/input.h, on 64-bit
// machines.
type inputEvent struct {
	Sec, Usec  int64
	Type, Code uint16
	Value      int32
}

// The event types and key codes of include/uapi/linux/input-event-codes.h that
// are met here.
const (
	evSyn = 0
	evKey = 1
	evAbs = 3

	keyEnter = 28
)

// setRepeat is EVIOCSREP of include/uapi/linux/input.h.
const setRepeat = 0x40084503

// openInput opens the event file of an input device below g.
func (g *guestDevice) openInput(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open(g.waitNode(t, "*:*/*/input/input*/event*", "/dev/input"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func readEvent(t *testing.T, f *os.File) inputEvent {
	t.Helper()
	var e inputEvent
	if err := binary.Read(f, binary.NativeEndian, &e); err != nil {
		t.Fatal(err)
	}
	return e
}

// What is scanned arrives in evdev as keys that go down and up. A slow reader
// loses nothing: evdev keeps 63 events for it, and a code of eight digits makes
// 54 of them where keys that are held do not repeat.
func TestGuestScanner(t *testing.T) {
	for _, speed := range []usb.Speed{usb.SpeedLow, usb.SpeedFull, usb.SpeedHigh} {
		t.Run(speed.String(), func(t *testing.T) {
			g := attach(t, "scanner", emulate.Options{Speed: speed, Serial: "scan-1"})
			if got := readFile(g.path, "product") + "/" + readFile(g.path, "serial"); got != "usbns bar-code scanner/scan-1" {
				t.Errorf("the kernel calls it %q", got)
			}
			events := g.openInput(t)
			if err := ioctl(events, setRepeat, unsafe.Pointer(&[2]uint32{60_000, 1000})); err != nil {
				t.Fatalf("make keys repeat after a minute: %v", err)
			}
			for _, code := range []string{"40170725", "96385074"} {
				scanned := make(chan error, 1)
				go func() { scanned <- g.Device.(emulate.Teller).Tell(t.Context(), code) }()
				if got := readCode(t, events); got != code {
					t.Errorf("keys of %q arrived, scanned was %q", got, code)
				}
				if err := <-scanned; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// readCode reads the digits of a code up to the release of Enter.
func readCode(t *testing.T, f *os.File) string {
	t.Helper()
	var code []byte
	down := uint16(0)
	for {
		e := readEvent(t, f)
		switch {
		case e.Type != evKey:
		case e.Value == 1:
			if down != 0 {
				t.Errorf("key %d went down while %d was", e.Code, down)
			}
			if down = e.Code; e.Code != keyEnter {
				code = append(code, "?1234567890"[min(e.Code-1, 11)%11])
			}
		case e.Code != down:
			t.Errorf("key %d came up, down was %d", e.Code, down)
		case e.Code == keyEnter:
			return string(code)
		default:
			down = 0
		}
	}
}
