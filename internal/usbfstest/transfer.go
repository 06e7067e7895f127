//go:build linux

package usbfstest

import (
	"fmt"
	"unsafe"

	"github.com/usbns/usbns/usb"
)

// newTransfer makes u ready for the kernel, which gets memory of its own: a
// control transfer has its setup packet in front, and the packets of an
// isochronous one lie without gaps.
func newTransfer(u *usb.URB) (*transfer, error) {
	if (u.Type == usb.Control) != (u.Endpoint.Number() == 0) {
		return nil, fmt.Errorf("%w: a %v transfer to %v", usb.ErrInvalid, u.Type, u.Endpoint)
	}
	t := &transfer{u: u, urb: urb{
		kind: urbTypes[u.Type], endpoint: uint8(u.Endpoint),
		flags: uint32(u.Flags & (usb.FlagShortNotOK | usb.FlagIsoASAP | usb.FlagZeroPacket)),
	}}
	var err error
	switch u.Type {
	case usb.Control:
		err = t.fillControl()
	case usb.Isochronous:
		err = t.fillPackets()
	default:
		t.data = append([]byte(nil), u.Buffer...)
		if u.Packets != nil {
			err = usb.ErrInvalid
		}
	}
	t.urb.buffer, t.urb.length = unsafe.Pointer(unsafe.SliceData(t.data)), int32(len(t.data))
	return t, err
}

func (t *transfer) fillControl() error {
	u := t.u
	if u.Packets != nil || len(u.Buffer) != int(u.Setup.Length) {
		return fmt.Errorf("%w: a control transfer of length %d with %d bytes", usb.ErrInvalid, u.Setup.Length, len(u.Buffer))
	}
	t.urb.endpoint = 0
	setup := u.Setup.Bytes()
	t.data = append(setup[:], u.Buffer...)
	return nil
}

func (t *transfer) fillPackets() error {
	u := t.u
	if n := len(u.Packets); n == 0 || n > maxPackets {
		return fmt.Errorf("%w: %d isochronous packets, allowed are 1 to %d", usb.ErrInvalid, n, maxPackets)
	}
	t.urb.numberOfPackets = int32(len(u.Packets))
	for i, p := range u.Packets {
		if p.Offset < 0 || p.Length < 0 || p.Offset > len(u.Buffer)-p.Length {
			return fmt.Errorf("%w: isochronous packet %d leaves the buffer", usb.ErrInvalid, i)
		}
		t.urb.packets[i].length = uint32(p.Length)
		t.data = append(t.data, u.Buffer[p.Offset:][:p.Length]...)
	}
	return nil
}

// finish tells the URB what the kernel says.
func (t *transfer) finish() {
	u := t.u
	u.Status, u.Actual = usb.Status(t.urb.status), int(t.urb.actual)
	switch u.Type {
	case usb.Control:
		if u.In() {
			copy(u.Buffer, t.data[8:])
		}
	case usb.Isochronous:
		t.finishPackets()
	default:
		if u.In() {
			copy(u.Buffer, t.data[:u.Actual])
		}
	}
}

func (t *transfer) finishPackets() {
	u := t.u
	u.Errors, u.StartFrame, u.Actual = int(t.urb.errors), t.urb.startFrame, 0
	data := t.data
	for i := range u.Packets {
		p := &u.Packets[i]
		p.Actual, p.Status = int(t.urb.packets[i].actual), usb.Status(t.urb.packets[i].status)
		if u.In() {
			copy(u.Buffer[p.Offset:][:p.Actual], data)
		}
		u.Actual += p.Actual
		data = data[p.Length:]
	}
}
