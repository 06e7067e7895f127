package main

import (
	"testing"

	"github.com/usbns/usbns/control"
)

func TestFromIsWhatIsKnown(t *testing.T) {
	for want, r := range map[string]control.Remote{
		"-":                  {},
		"desk:3240/1-1":      {Host: "desk", Port: "3240", BusID: "1-1"},
		"[2001:db8::1]:3240": {Host: "2001:db8::1", Port: "3240"},
	} {
		if got := from(r); got != want {
			t.Errorf("from %+v is %q, want %q", r, got, want)
		}
	}
}
