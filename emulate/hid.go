package emulate

import (
	"context"
	"math/bits"
	"slices"

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

const hidIn = usb.Address(0x81)

// hid is a device that has one interface of the HID class, with one input
// report and perhaps an output report, neither of them numbered.
type hid struct {
	task
	descriptor []byte // of the reports
	boot       uint8  // the boot protocol it knows, 0 for none: 1 keyboard, 2 mouse
	input      int    // size of the input report in bytes
	output     int    // size of the output report, 0 if there is none

	// The rest is guarded by mu.
	protocol uint8
	last     []byte   // the input report that was sent last
	leds     []byte   // the output report
	queue    [][]byte // what is still to be sent
	begun    bool     // the device will not be at rest before the queue's end
}

// open makes the device. d lacks nothing but its configuration.
func (h *hid) open(speed usb.Speed, d Description) error {
	h.task = newTask()
	h.renew()
	i := Interface{
		Class: classHID, Protocol: h.boot,
		Extra: h.classDescriptor(),
		Endpoints: []Endpoint{
			{Address: hidIn, Type: usb.Interrupt, MaxPacket: uint16(h.input), Interval: interval(speed, 8)},
		},
	}
	if h.boot != 0 {
		i.SubClass = 1
	}
	d.Configurations = []Configuration{{MilliAmps: 100, Interfaces: []Interface{i}}}
	desc, err := d.Build(speed)
	if err != nil {
		return err
	}
	h.dev, err = New(Config{
		Speed:       speed,
		Descriptors: desc,
		Control:     h.control,
		Endpoints:   map[usb.Address]Handler{hidIn: h.in},
		Changed:     h.reset,
	})
	return err
}

// classDescriptor is what follows the interface (HID 1.11, section 6.2.1).
func (h *hid) classDescriptor() []byte {
	n := len(h.descriptor)
	return []byte{9, hidDescHID, 0x11, 0x01, 0, 1, hidDescReport, byte(n), byte(n >> 8)}
}

// send has the host take reports, the last of which leaves the device at rest,
// and returns when it has. compose is called with mu held. After an error the
// device is at rest, or will be with the next report the host takes.
func (h *hid) send(ctx context.Context, compose func() ([][]byte, error)) error {
	return h.run(ctx, func() error {
		reports, err := compose()
		if err != nil {
			return err
		}
		// What an abandoned send has left stays in front.
		h.begun = len(h.queue) > 0
		h.queue = append(h.queue, reports...)
		return nil
	}, hidIn, h.abandon)
}

// abandon forgets what is not sent yet, but for the report that puts the device
// to rest.
func (h *hid) abandon() {
	keep := 0
	if h.begun {
		keep = 1
	}
	h.queue = h.queue[len(h.queue)-keep:]
}

func (h *hid) in(u *usb.URB) (done bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.queue) == 0 {
		return false
	}
	h.last, h.queue, h.begun = h.queue[0], h.queue[1:], true
	if len(h.queue) == 0 {
		h.end(nil)
	}
	return Reply(u, h.last)
}

func (h *hid) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.renew()
	h.end(ErrNotConfigured)
}

func (h *hid) renew() {
	h.protocol = hidReportProtocol
	h.last, h.leds, h.queue = make([]byte, h.input), make([]byte, h.output), nil
}

func (h *hid) control(u *usb.URB) (done bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
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
		return Reply(u, h.classDescriptor())
	case hidDescReport:
		return Reply(u, h.descriptor)
	}
	return Stall(u)
}

func (h *hid) getClass(u *usb.URB, high, low uint8) (done bool) {
	switch u.Setup.Request {
	case hidGetReport:
		switch {
		case low == 0 && high == hidInput:
			return Reply(u, h.last)
		case low == 0 && high == hidOutput && h.output > 0:
			return Reply(u, h.leds)
		}
	case hidGetIdle:
		return Reply(u, []byte{0})
	case hidGetProtocol:
		if h.boot != 0 {
			return Reply(u, []byte{h.protocol})
		}
	}
	return Stall(u)
}

func (h *hid) setClass(u *usb.URB, high, low uint8) (done bool) {
	switch u.Setup.Request {
	case hidSetReport:
		if low == 0 && high == hidOutput && h.output > 0 && int(u.Setup.Length) == h.output {
			h.leds = slices.Clone(u.Buffer[:h.output])
			return Accept(u)
		}
	case hidSetIdle:
		if high == 0 { // report changes only; to refuse the repeating of reports is allowed by 7.2.4
			return Accept(u)
		}
	case hidSetProtocol:
		if h.boot != 0 && u.Setup.Value <= hidReportProtocol {
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
