package emulate

import (
	"bytes"
	"testing"

	"github.com/usbns/usbns/usb"
)

func TestMessagesEndWithAShortPacket(t *testing.T) {
	message := func(n int) []byte { return bytes.Repeat([]byte{1}, n) }
	type read struct {
		size, got int
		status    usb.Status
	}
	for name, c := range map[string]struct {
		sizes []int // of the messages
		reads []read
	}{
		"in one":               {[]int{5}, []read{{64, 5, 0}}},
		"two":                  {[]int{5, 6}, []read{{64, 5, 0}, {64, 6, 0}}},
		"empty":                {[]int{0, 3}, []read{{64, 0, 0}, {64, 3, 0}}},
		"in parts":             {[]int{20}, []read{{8, 8, 0}, {8, 8, 0}, {8, 4, 0}}},
		"exact, not full":      {[]int{5, 6}, []read{{5, 5, 0}, {6, 6, 0}}},
		"exact and full":       {[]int{16, 6}, []read{{16, 16, 0}, {16, 0, 0}, {16, 6, 0}}},
		"full, more asked for": {[]int{16, 6}, []read{{24, 16, 0}, {24, 6, 0}}},
		"odd size of a buffer": {[]int{20, 6}, []read{{10, 10, usb.StatusOverflow}, {8, 4, 0}, {8, 6, 0}}},
		"packet past the end":  {[]int{12, 6}, []read{{10, 10, usb.StatusOverflow}, {8, 6, 0}}},
		"overflow at the end":  {[]int{16, 6}, []read{{10, 10, usb.StatusOverflow}, {8, 6, 0}}},
	} {
		t.Run(name, func(t *testing.T) {
			m := &messages{maxPacket: 8}
			for _, n := range c.sizes {
				m.add(message(n))
			}
			for i, r := range c.reads {
				u := &usb.URB{Endpoint: 0x81, Type: usb.Bulk, Buffer: make([]byte, r.size)}
				if !m.in(u) || u.Actual != r.got || u.Status != r.status {
					t.Errorf("read %d: %d bytes, status %v; want %d, %v", i, u.Actual, u.Status, r.got, r.status)
				}
			}
			if !m.empty() || m.in(&usb.URB{}) {
				t.Error("something is left")
			}
		})
	}
}
