package emulate

import (
	"math/bits"

	"github.com/usbns/usbns/usb"
)

// Requests and descriptor types of the HID class (HID 1.11, sections 7.2 and
// 7.1).
const (
	classHID = 0x03

	hidGetReport   = 0x01
	hidGetIdle     = 0x02
	hidGetProtocol = 0x03
	hidSetReport   = 0x09
	hidSetIdle     = 0x0a
	hidSetProtocol = 0x0b

	hidDescHID    = 0x21
	hidDescReport = 0x22

	hidInput   = 1 // report types
	hidOutput  = 2
	hidFeature = 3

	hidReportProtocol = 1
)

// hid answers the requests of the HID class for interface 0. Its functions may
// be nil.
type hid struct {
	report   []byte // the report descriptor
	boot     bool   // knows the boot protocol
	protocol uint8
	// get returns a report, nil if there is no such one; set takes one.
	get func(kind, id uint8) []byte
	set func(kind, id uint8, data []byte) bool
}

// descriptor is the class descriptor that follows the interface (HID 1.11,
// section 6.2.1).
func (h *hid) descriptor() []byte {
	n := len(h.report)
	return []byte{9, hidDescHID, 0x11, 0x01, 0, 1, hidDescReport, byte(n), byte(n >> 8)}
}

// reset is what SET_CONFIGURATION and a reset do.
func (h *hid) reset() { h.protocol = hidReportProtocol }

func (h *hid) control(u *usb.URB) (done bool) {
	s := u.Setup
	if s.Index != 0 {
		return Stall(u)
	}
	high, low := uint8(s.Value>>8), uint8(s.Value)
	switch s.RequestType {
	case usb.DirIn | usb.ToInterface:
		if s.Request == usb.ReqGetDescriptor {
			return h.getDescriptor(u, high)
		}
	case usb.DirIn | usb.KindClass | usb.ToInterface:
		return h.getClass(u, high, low)
	case usb.KindClass | usb.ToInterface:
		return h.setClass(u, high, low)
	}
	return Stall(u)
}

func (h *hid) getDescriptor(u *usb.URB, kind uint8) (done bool) {
	switch kind {
	case hidDescHID:
		return Reply(u, h.descriptor())
	case hidDescReport:
		return Reply(u, h.report)
	}
	return Stall(u)
}

func (h *hid) getClass(u *usb.URB, high, low uint8) (done bool) {
	switch u.Setup.Request {
	case hidGetReport:
		if h.get == nil {
			break
		}
		if b := h.get(high, low); b != nil {
			return Reply(u, b)
		}
	case hidGetIdle:
		return Reply(u, []byte{0})
	case hidGetProtocol:
		if h.boot {
			return Reply(u, []byte{h.protocol})
		}
	}
	return Stall(u)
}

func (h *hid) setClass(u *usb.URB, high, low uint8) (done bool) {
	switch u.Setup.Request {
	case hidSetReport:
		if h.set != nil && h.set(high, low, u.Buffer[:u.Setup.Length]) {
			return Accept(u)
		}
	case hidSetIdle:
		if high == 0 { // report changes only; repeating them is a stall, as 7.2.4 allows
			return Accept(u)
		}
	case hidSetProtocol:
		if h.boot && u.Setup.Value <= hidReportProtocol {
			h.protocol = low
			return Accept(u)
		}
	}
	return Stall(u)
}

// interval is bInterval of an interrupt endpoint that is to be polled about
// every so many milliseconds: at high and super speed the exponent of a number
// of microframes (USB 2.0, section 9.6.6).
func interval(speed usb.Speed, milliseconds uint8) uint8 {
	if speed < usb.SpeedHigh {
		return milliseconds
	}
	return uint8(bits.Len(uint(milliseconds) * 8))
}
