//go:build guest

package emulate_test

import (
	"bytes"
	"os"
	"slices"
	"testing"
	"unsafe"

	"github.com/usbns/usbns/emulate"
)

// Codes of include/uapi/linux/input-event-codes.h.
const (
	absX        = 0x00
	absY        = 0x01
	absPressure = 0x18
	btnToolPen  = 0x140
	btnTouch    = 0x14a
)

// A pen is what is known of a pen after the events that came so far.
type pen struct {
	near, touches  bool
	x, y, pressure int32
}

// A stroke arrives in evdev, with position, pressure and tip, and unchanged in
// hidraw.
func TestGuestSignpad(t *testing.T) {
	g := attach(t, "signpad", emulate.Options{})
	events := g.openInput(t)
	for _, c := range []struct {
		axis, max, resolution int32
	}{{absX, 10_000, 100}, {absY, 5_000, 100}, {absPressure, 1023, 0}} {
		value, max, resolution := absInfo(t, events, c.axis)
		if value != 0 || max != c.max || resolution != c.resolution {
			t.Errorf("axis %d: value %d, maximum %d, resolution %d/mm; want 0, %d, %d", c.axis, value, max, resolution, c.max, c.resolution)
		}
	}
	raw, err := os.Open(g.waitNode(t, "*:*/*/hidraw/hidraw*", "/dev"))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()

	drawn := make(chan error, 1)
	go func() { drawn <- g.Device.(emulate.Teller).Tell(t.Context(), "100,200,512 110,210,600") }()
	want := []pen{
		{near: true, x: 100, y: 200},
		{true, true, 100, 200, 512},
		{true, true, 110, 210, 600},
		{near: true, x: 110, y: 210},
		{x: 110, y: 210},
	}
	if got := readPen(t, events); !slices.Equal(got, want) {
		t.Errorf("the pen went\n%+v, want\n%+v", got, want)
	}
	if err := <-drawn; err != nil {
		t.Error(err)
	}
	b := make([]byte, 64)
	for _, want := range [][]byte{{2, 100, 0, 200, 0, 0, 0}, {3, 100, 0, 200, 0, 0, 2}} {
		n, err := raw.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b[:n], want) {
			t.Errorf("hidraw: % x, want % x", b[:n], want)
		}
	}
}

// readPen reads one state for each report, until the pen is away.
func readPen(t *testing.T, f *os.File) []pen {
	t.Helper()
	var states []pen
	var now pen
	for {
		e := readEvent(t, f)
		switch {
		case e.Type == evSyn:
			states = append(states, now)
			if !now.near {
				return states
			}
		case e.Type == evKey && e.Code == btnToolPen:
			now.near = e.Value != 0
		case e.Type == evKey && e.Code == btnTouch:
			now.touches = e.Value != 0
		case e.Type == evAbs && e.Code == absX:
			now.x = e.Value
		case e.Type == evAbs && e.Code == absY:
			now.y = e.Value
		case e.Type == evAbs && e.Code == absPressure:
			now.pressure = e.Value
		}
	}
}

// absInfo asks for an axis with EVIOCGABS of include/uapi/linux/input.h.
func absInfo(t *testing.T, f *os.File, axis int32) (value, maximum, resolution int32) {
	t.Helper()
	var info struct{ value, minimum, maximum, fuzz, flat, resolution int32 }
	if err := ioctl(f, 0x80184540+uintptr(axis), unsafe.Pointer(&info)); err != nil {
		t.Fatalf("axis %d: %v", axis, err)
	}
	return info.value, info.maximum, info.resolution
}
