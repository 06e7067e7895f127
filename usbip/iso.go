package usbip

import (
	"fmt"

	"github.com/usbns/usbns/usb"
)

// checkPackets reports whether the packets of an isochronous transfer lie one
// behind the other within its buffer. Everything that spreads or gathers them
// relies on that.
func checkPackets(u *usb.URB) error {
	if u.Type != usb.Isochronous {
		if u.Packets != nil {
			return fmt.Errorf("%w: packets in a %v transfer", usb.ErrInvalid, u.Type)
		}
		return nil
	}
	if n := len(u.Packets); n == 0 || n > MaxIsoPackets {
		return fmt.Errorf("%w: %d isochronous packets, allowed are 1 to %d", usb.ErrInvalid, n, MaxIsoPackets)
	}
	end := 0
	for i := range u.Packets {
		p := &u.Packets[i]
		if p.Offset < end || p.Offset > len(u.Buffer) || p.Length < 0 || p.Length > len(u.Buffer)-p.Offset {
			return fmt.Errorf("%w: isochronous packet %d of %d bytes at %d overlaps or leaves the buffer", usb.ErrInvalid, i, p.Length, p.Offset)
		}
		end = p.Offset + p.Length
	}
	return nil
}

// spread moves the data of an isochronous IN transfer, which came without
// gaps, to where its packets want it. Going from the last to the first nothing
// is overwritten before it has moved.
func spread(buf []byte, packets []usb.IsoPacket, actual int) {
	for i := len(packets) - 1; i >= 0; i-- {
		p := &packets[i]
		actual -= p.Actual
		copy(buf[p.Offset:p.Offset+p.Actual], buf[actual:])
	}
}

// gather is the reverse of spread, and returns the sum of the packets' Actual.
func gather(buf []byte, packets []usb.IsoPacket) int {
	n := 0
	for i := range packets {
		p := &packets[i]
		n += copy(buf[n:], buf[p.Offset:p.Offset+p.Actual])
	}
	return n
}
