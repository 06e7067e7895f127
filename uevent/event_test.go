package uevent

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var keyboard = Event{
	Action: "add", DevPath: "/devices/platform/vhci_hcd.0/usb1/1-1",
	Env: map[string]string{"SUBSYSTEM": "usb", "DEVTYPE": "usb_device", "MAJOR": "189", "MINOR": "1", "PRODUCT": "1/2=3"},
}

func TestParse(t *testing.T) {
	got, err := Parse([]byte("add@/devices/platform/vhci_hcd.0/usb1/1-1\x00ACTION=add\x00DEVPATH=/devices/platform/vhci_hcd.0/usb1/1-1\x00" +
		"SUBSYSTEM=usb\x00DEVTYPE=usb_device\x00MAJOR=189\x00MINOR=1\x00PRODUCT=1/2=3\x00"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(keyboard, got); diff != "" {
		t.Error(diff)
	}
	if got, err = Parse(appendKernel(nil, keyboard)); err != nil || cmp.Diff(keyboard, got) != "" {
		t.Errorf("what is sent is read as %v, %v", got, err)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":             "",
		"no end":              "add@/devices/a",
		"no path":             "add\x00",
		"no action":           "@/devices/a\x00",
		"relative path":       "add@devices/a\x00",
		"no value":            "add@/devices/a\x00SUBSYSTEM\x00",
		"no key":              "add@/devices/a\x00=usb\x00",
		"another action":      "add@/devices/a\x00ACTION=remove\x00",
		"another path":        "add@/devices/a\x00DEVPATH=/devices/b\x00",
		"too many properties": "add@/devices/a\x00" + strings.Repeat("A=1\x00", maxProperties+1),
		"too long":            "add@/" + strings.Repeat("a", maxMessage) + "\x00",
		"libudev's":           string(appendUdev(nil, keyboard, 1)),
	} {
		if e, err := Parse([]byte(text)); !errors.Is(err, errMalformed) {
			t.Errorf("%s: %v, %v", name, e, err)
		}
	}
}

// libudev's filters let these pass: see TestGuestSend.
func TestMurmur2(t *testing.T) {
	for text, want := range map[string]uint32{"": 0, "usb": 0x0577c5e5, "usb_device": 0x27f8f50c, "hidraw": 0xc2caf397} {
		if got := murmur2(text); got != want {
			t.Errorf("%q: %#x, want %#x", text, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(appendKernel(nil, keyboard))
	f.Add(appendUdev(nil, keyboard, 1))
	f.Add([]byte("change@/\x00A=\x00"))
	f.Fuzz(func(t *testing.T, text []byte) {
		e, err := Parse(text)
		if err != nil {
			return
		}
		delete(e.Env, "SEQNUM")
		again, err := Parse(appendKernel(nil, e))
		if err != nil {
			if len(text) > maxMessage/2 {
				return // what was left out has made it longer
			}
			t.Fatal(err)
		}
		if diff := cmp.Diff(e, again); diff != "" {
			t.Error(diff)
		}
	})
}
