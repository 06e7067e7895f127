package emulate

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"image"
	"testing"
	"testing/synctest"

	"github.com/usbns/usbns/usb"
)

func newTestFingerprint(t *testing.T) *Fingerprint {
	t.Helper()
	f, err := NewFingerprint(Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	mustControl(t, f, usb.SetConfiguration(1), nil)
	return f
}

func mustMove(t *testing.T, d usb.Device, a usb.Address, kind usb.TransferType, b []byte) []byte {
	t.Helper()
	u := usb.URB{Endpoint: a, Type: kind, Buffer: b}
	if err := usb.Do(t.Context(), d, &u); err != nil {
		t.Fatalf("%v: %v", a, err)
	}
	return b[:u.Actual]
}

// ask sends a command and returns the first answer.
func (f *Fingerprint) ask(t *testing.T, code byte) (status byte, chunk int, data []byte) {
	t.Helper()
	mustMove(t, f, FingerprintCommands, usb.Bulk, append([]byte{code}, make([]byte, 7)...))
	return f.fetch(t, code)
}

func (f *Fingerprint) fetch(t *testing.T, code byte) (status byte, chunk int, data []byte) {
	t.Helper()
	b := mustMove(t, f, FingerprintAnswers, usb.Bulk, make([]byte, FingerprintHead+FingerprintChunk))
	if len(b) < FingerprintHead || b[0] != code || int(binary.LittleEndian.Uint32(b[4:])) != len(b)-FingerprintHead {
		t.Fatalf("answer to %d of %d bytes: % x", code, len(b), b[:min(len(b), 16)])
	}
	return b[1], int(binary.LittleEndian.Uint16(b[2:])), b[FingerprintHead:]
}

func (f *Fingerprint) waitEvent(t *testing.T, want byte) {
	t.Helper()
	if got := mustMove(t, f, FingerprintEvents, usb.Interrupt, make([]byte, 8)); !bytes.Equal(got, []byte{want}) {
		t.Fatalf("event % x, want %d", got, want)
	}
}

func TestTouchIsCaptured(t *testing.T) {
	f := newTestFingerprint(t)
	finger := drawFinger("left thumb")
	touched := make(chan error, 1)
	go func() { touched <- f.Touch(t.Context(), finger) }()
	f.waitEvent(t, 1)
	var got []byte
	for i := 0; len(got) < FingerprintWidth*FingerprintHeight; i++ {
		ask := f.fetch
		if i == 0 {
			ask = f.ask
		}
		status, chunk, data := ask(t, FingerprintCapture)
		if status != FingerprintOK || chunk != i || len(data) == 0 {
			t.Fatalf("chunk %d: status %d, number %d, %d bytes", i, status, chunk, len(data))
		}
		got = append(got, data...)
	}
	if err := <-touched; err != nil {
		t.Error(err)
	}
	f.waitEvent(t, 0)
	if !bytes.Equal(got, finger.Pix) {
		t.Error("the image arrived changed")
	}
	if status, _, _ := f.ask(t, FingerprintCapture); status != FingerprintNoFinger {
		t.Errorf("capture without a finger: status %d", status)
	}
}

func TestFingerprintCommands(t *testing.T) {
	f := newTestFingerprint(t)
	if status, _, data := f.ask(t, FingerprintInfo); status != FingerprintOK || !bytes.Equal(data, []byte{192, 0, 0, 1}) {
		t.Errorf("info: status %d, % x", status, data)
	}
	if status, _, data := f.ask(t, 0x77); status != FingerprintUnknown || len(data) != 0 {
		t.Errorf("unknown command: status %d, % x", status, data)
	}
	for name, b := range map[string][]byte{"empty": {}, "short": {1}, "long": make([]byte, 9), "dirty": {1, 0, 0, 0, 0, 0, 0, 1}} {
		u := usb.URB{Endpoint: FingerprintCommands, Type: usb.Bulk, Buffer: b}
		if err := usb.Do(t.Context(), f, &u); !errors.Is(err, usb.StatusStall.Err()) {
			t.Errorf("%s command: %v, want a stall", name, err)
		}
		mustControl(t, f, usb.ClearHalt(FingerprintCommands), nil)
	}
	f.ask(t, FingerprintInfo)
}

// No command is taken before the last answer was fetched, or given up.
func TestFingerprintAbort(t *testing.T) {
	f := newTestFingerprint(t)
	command := append([]byte{FingerprintInfo}, make([]byte, 7)...)
	mustMove(t, f, FingerprintCommands, usb.Bulk, command)
	u := usb.URB{Endpoint: FingerprintCommands, Type: usb.Bulk, Buffer: append([]byte{0x77}, make([]byte, 7)...)}
	done := begin(t, f.Device, &u)
	select {
	case <-done:
		t.Fatal("a command was taken before the answer was fetched")
	default:
	}
	mustControl(t, f, usb.Setup{RequestType: usb.KindVendor, Request: FingerprintAbort}, nil)
	<-done
	if status, _, _ := f.fetch(t, 0x77); status != FingerprintUnknown {
		t.Errorf("status %d", status)
	}
}

func TestTouchEnds(t *testing.T) {
	stopped := errors.New("stopped")
	for name, c := range map[string]struct {
		end  func(*testing.T, *Fingerprint, context.CancelCauseFunc)
		want error
	}{
		"context": {func(_ *testing.T, _ *Fingerprint, cancel context.CancelCauseFunc) { cancel(stopped) }, stopped},
		"close":   {func(_ *testing.T, f *Fingerprint, _ context.CancelCauseFunc) { f.Close() }, usb.ErrGone},
		"reset":   {func(t *testing.T, f *Fingerprint, _ context.CancelCauseFunc) { f.Reset(t.Context()) }, ErrNotConfigured},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newTestFingerprint(t)
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				touched := make(chan error, 1)
				go func() { touched <- f.Tell(ctx, "thumb") }()
				f.waitEvent(t, 1)
				f.ask(t, FingerprintCapture)
				c.end(t, f, cancel)
				if err := <-touched; !errors.Is(err, c.want) {
					t.Errorf("Touch: %v, want %v", err, c.want)
				}
				if name == "context" {
					f.waitEvent(t, 0)
				}
			})
		})
	}
}

func TestTouchRefuses(t *testing.T) {
	f, err := NewFingerprint(Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Tell(t.Context(), "thumb"); !errors.Is(err, ErrNotConfigured) {
		t.Errorf("without a host: %v", err)
	}
	if err := f.Touch(t.Context(), image.NewGray(image.Rect(0, 0, 10, 10))); err == nil {
		t.Error("an image of another size: no error")
	}
	f.Close()
	if err := f.Tell(t.Context(), "thumb"); !errors.Is(err, usb.ErrGone) {
		t.Errorf("closed: %v", err)
	}
}

func TestFingersDiffer(t *testing.T) {
	a, b := drawFinger("left"), drawFinger("right")
	if bytes.Equal(a.Pix, b.Pix) {
		t.Error("two names have one finger")
	}
	if !bytes.Equal(a.Pix, drawFinger("left").Pix) {
		t.Error("one name has two fingers")
	}
}
