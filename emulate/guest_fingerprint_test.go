//go:build guest

package emulate_test

import (
	"bytes"
	"image"
	"testing"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/usb"
)

// A program gets the image of a finger through usbfs: the event that one is
// there, and then the chunks.
func TestGuestFingerprint(t *testing.T) {
	for _, speed := range []usb.Speed{usb.SpeedFull, usb.SpeedHigh, usb.SpeedSuper} {
		t.Run(speed.String(), func(t *testing.T) {
			g := attach(t, "fingerprint", emulate.Options{Speed: speed})
			u := g.openUsbfs(t)
			finger := image.NewGray(image.Rect(0, 0, emulate.FingerprintWidth, emulate.FingerprintHeight))
			for i := range finger.Pix {
				finger.Pix[i] = byte(i * i >> 8)
			}
			touched := make(chan error, 1)
			go func() { touched <- g.Device.(*emulate.Fingerprint).Touch(t.Context(), finger) }()
			u.finger(t, 1)
			u.mustMove(t, usbfsBulk, emulate.FingerprintCommands, []byte{emulate.FingerprintCapture, 0, 0, 0, 0, 0, 0, 0})
			var got []byte
			for len(got) < len(finger.Pix) {
				b := u.mustMove(t, usbfsBulk, emulate.FingerprintAnswers, make([]byte, emulate.FingerprintHead+emulate.FingerprintChunk))
				if len(b) <= emulate.FingerprintHead || b[1] != emulate.FingerprintOK {
					t.Fatalf("after %d bytes: answer % x", len(got), b[:min(len(b), 16)])
				}
				got = append(got, b[emulate.FingerprintHead:]...)
			}
			if !bytes.Equal(got, finger.Pix) {
				t.Error("the image arrived changed")
			}
			if err := <-touched; err != nil {
				t.Error(err)
			}
			u.finger(t, 0)
		})
	}
}

// finger waits for an event.
func (u usbfsFile) finger(t *testing.T, want byte) {
	t.Helper()
	if got := u.mustMove(t, usbfsInterrupt, emulate.FingerprintEvents, make([]byte, 8)); !bytes.Equal(got, []byte{want}) {
		t.Errorf("event % x, want %d", got, want)
	}
}

// mustMove makes one transfer and returns what was moved.
func (u usbfsFile) mustMove(t *testing.T, kind uint8, a usb.Address, b []byte) []byte {
	t.Helper()
	urb := usbfsTransfer(kind, a, b)
	u.transfers(t, urb)
	if urb.Status != 0 {
		t.Fatalf("endpoint %02x: status %d", a, urb.Status)
	}
	return b[:urb.Actual]
}
