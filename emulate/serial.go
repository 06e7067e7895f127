package emulate

import (
	"bytes"
	"context"
	"fmt"

	"github.com/usbns/usbns/usb"
)

const (
	serialOut   = usb.Address(0x01)
	serialIn    = usb.Address(0x81)
	serialEvent = usb.Address(0x82)
)

// Codes of the communications class (CDC 1.2, sections 4 to 6; PSTN 1.2, section
// 6).
const (
	classCDC     = 0x02
	classCDCData = 0x0a
	cdcACM       = 0x02 // subclass: abstract control model
	cdcAT        = 0x01 // protocol: AT commands, for which there is a driver

	cdcSetLineCoding       = 0x20
	cdcGetLineCoding       = 0x21
	cdcSetControlLineState = 0x22
	cdcSerialState         = 0x20 // a notification

	cdcDTR       = 0x01 // of the control line state
	cdcDCDAndDSR = 0x03 // of the serial state
)

// serialBuffer is how much is kept until the host fetches it, in bytes.
const serialBuffer = 64 << 10

// defaultLineCoding is 115200 baud, 8 data bits, no parity, 1 stop bit.
var defaultLineCoding = [7]byte{0x00, 0xc2, 0x01, 0x00, 0, 0, 8}

// A Serial is a serial adapter (CDC-ACM) with a plug in its socket that connects
// its lines to each other: what is sent comes back, and carrier follows DTR. A
// host that does not fetch what came back cannot send on after 64 KiB.
type Serial struct {
	*Device
	task task // of the one who sends a line

	// The rest is guarded by task.mu.
	coding [7]byte // what the host has set; it changes nothing
	dtr    bool
	told   bool // what the host knows: carrier is there
	echo   bytes.Buffer
	line   []byte // what the one who waits wants to send
}

// NewSerial makes an adapter, at high speed unless the options say otherwise.
func NewSerial(o Options) (*Serial, error) {
	speed, err := o.speed(usb.SpeedHigh, usb.SpeedFull)
	if err != nil {
		return nil, err
	}
	bulk := bulkPacket(speed)
	d := o.describe(productSerial, "usbns serial adapter")
	d.Class, d.SubClass, d.Protocol = 0xef, 2, 1 // functions are interface associations
	d.Configurations = []Configuration{{
		MilliAmps: 100,
		Interfaces: []Interface{{
			Class: classCDC, SubClass: cdcACM, Protocol: cdcAT,
			Association: &Association{Count: 2, Class: classCDC, SubClass: cdcACM, Protocol: cdcAT},
			Extra: []byte{
				5, 0x24, 0x00, 0x20, 0x01, // header: CDC 1.20
				5, 0x24, 0x01, 0x00, 1, // call management: none, by interface 1
				4, 0x24, 0x02, 0x02, // ACM: line coding and serial state
				5, 0x24, 0x06, 0, 1, // union of interface 0 and 1
			},
			Endpoints: []Endpoint{
				{Address: serialEvent, Type: usb.Interrupt, MaxPacket: 16, Interval: interval(speed, 16)},
			},
		}, {
			Number: 1, Class: classCDCData,
			Endpoints: []Endpoint{
				{Address: serialOut, Type: usb.Bulk, MaxPacket: bulk},
				{Address: serialIn, Type: usb.Bulk, MaxPacket: bulk},
			},
		}},
	}}
	desc, err := d.Build(speed)
	if err != nil {
		return nil, err
	}
	s := &Serial{task: newTask(), coding: defaultLineCoding}
	s.Device, err = New(Config{
		Speed:       speed,
		Descriptors: desc,
		Control:     s.control,
		Endpoints:   map[usb.Address]Handler{serialOut: s.out, serialIn: s.in, serialEvent: s.event},
		Changed:     s.reset,
	})
	s.task.dev = s.Device
	return s, err
}

// SendLine sends text and CR LF to the host, after what is still on its way
// back, and returns when the host has fetched it. One SendLine waits for
// another. The error is [ErrNotConfigured] if no host uses the adapter;
// [usb.ErrGone]; or the cause of the end of ctx. After an error the host may
// have a part of the line.
func (s *Serial) SendLine(ctx context.Context, text string) error {
	err := s.task.run(ctx, func() error {
		s.line = []byte(text + "\r\n")
		return nil
	}, serialIn, func() { s.line = nil })
	if err != nil {
		return fmt.Errorf("send %q: %w", text, err)
	}
	return nil
}

// Tell implements [Teller]: it sends a line.
func (s *Serial) Tell(ctx context.Context, text string) error { return s.SendLine(ctx, text) }

func (s *Serial) out(u *usb.URB) (done bool) {
	s.task.mu.Lock()
	defer s.task.mu.Unlock()
	rest := u.Buffer[u.Actual:]
	n := min(len(rest), serialBuffer-s.echo.Len())
	s.echo.Write(rest[:n])
	u.Actual += n
	s.Wake(serialIn)
	return n == len(rest)
}

func (s *Serial) in(u *usb.URB) (done bool) {
	s.task.mu.Lock()
	defer s.task.mu.Unlock()
	switch {
	case s.echo.Len() > 0:
		u.Actual, _ = s.echo.Read(u.Buffer)
		s.Wake(serialOut)
	case len(s.line) > 0:
		u.Actual = copy(u.Buffer, s.line)
		if s.line = s.line[u.Actual:]; len(s.line) == 0 {
			s.task.end(nil)
		}
	default:
		return false
	}
	return true
}

func (s *Serial) event(u *usb.URB) (done bool) {
	s.task.mu.Lock()
	defer s.task.mu.Unlock()
	if s.told == s.dtr {
		return false
	}
	s.told = s.dtr
	var state byte
	if s.dtr {
		state = cdcDCDAndDSR
	}
	return Reply(u, []byte{usb.DirIn | usb.KindClass | usb.ToInterface, cdcSerialState, 0, 0, 0, 0, 2, 0, state, 0})
}

func (s *Serial) control(u *usb.URB) (done bool) {
	s.task.mu.Lock()
	defer s.task.mu.Unlock()
	const toInterface = usb.KindClass | usb.ToInterface
	r := u.Setup
	switch {
	case r.Index != 0:
		return Stall(u)
	case r.Is(toInterface, cdcSetLineCoding) && int(r.Length) == len(s.coding):
		s.coding = [7]byte(u.Buffer)
		return Accept(u)
	case r.Is(usb.DirIn|toInterface, cdcGetLineCoding):
		return Reply(u, s.coding[:])
	case r.Is(toInterface, cdcSetControlLineState):
		s.dtr = r.Value&cdcDTR != 0
		s.Wake(serialEvent)
		return Accept(u)
	}
	return Stall(u)
}

func (s *Serial) reset() {
	s.task.mu.Lock()
	defer s.task.mu.Unlock()
	s.coding, s.dtr, s.told = defaultLineCoding, false, false
	s.echo.Reset()
	s.line = nil
	s.task.end(ErrNotConfigured)
}
