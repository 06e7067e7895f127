package emulate

import (
	"fmt"
	"strings"
	"testing"

	"github.com/usbns/usbns/usb"
)

func newTestSignpad(t *testing.T) *Signpad {
	t.Helper()
	p, err := NewSignpad(Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	mustControl(t, p, usb.SetConfiguration(1), nil)
	return p
}

func TestDrawMovesThePen(t *testing.T) {
	p := newTestSignpad(t)
	h := poll(t, p)
	if err := p.Draw(t.Context(), PenPoint{0, 0, 1}, PenPoint{0x1234, 0x0567, 0x0123}, PenPoint{10_000, 5_000, 1023}); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"02 00 00 00 00 00 00", // in range
		"03 00 00 00 00 01 00", // tip down
		"03 34 12 67 05 23 01",
		"03 10 27 88 13 ff 03",
		"02 10 27 88 13 00 00", // lifted
		"00 10 27 88 13 00 00", // away
	}
	var got []string
	for _, r := range h.stop() {
		got = append(got, fmt.Sprintf("% x", r))
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("host saw\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestSignpadIsTold(t *testing.T) {
	p := newTestSignpad(t)
	h := poll(t, p)
	if err := p.Tell(t.Context(), " 100,200,512 110,210,600 "); err != nil {
		t.Fatal(err)
	}
	if got := h.stop(); len(got) != 5 || fmt.Sprintf("% x", got[2]) != "03 6e 00 d2 00 58 02" {
		t.Errorf("host saw % x", got)
	}
}

func TestDrawRefuses(t *testing.T) {
	p := newTestSignpad(t)
	h := poll(t, p)
	for text, want := range map[string]string{
		"":                "without points",
		"1,2":             `"1,2" is no point`,
		"1,2,3,4":         "is no point",
		"1,2,3 x":         `"x" is no point`,
		"-1,2,3":          "point 1 (-1,2,3)",
		"1,2,3 10001,2,3": "point 2 (10001,2,3): allowed are 0,0,1 to 10000,5000,1023",
		"1,5001,3":        "point 1",
		"1,2,1024":        "point 1",
		"1,2,0":           "point 1",
	} {
		if err := p.Tell(t.Context(), text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want an error that says %q", text, err, want)
		}
	}
	if got := h.stop(); len(got) != 0 {
		t.Errorf("host saw % x", got)
	}
}
