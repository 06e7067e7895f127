package emulate

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/usbns/usbns/usb"
)

// ErrNotConfigured says that there is no host which uses the device at the
// moment, or that it stopped to.
var ErrNotConfigured = errors.New("no host has configured the device")

const scannerIn = usb.Address(0x81)

// A Scanner is a bar-code scanner of the kind that is a keyboard to the host:
// what it reads, it types.
type Scanner struct {
	*Device
	turn chan struct{} // holds one token: one code is typed at a time

	mu      sync.Mutex
	hid     hid
	leds    uint8
	last    keyReport
	reports []keyReport // to be typed: key down, key up, and so on
	done    chan error  // of the Scan that waits for them, nil if none does
}

// NewScanner makes a scanner, at full speed unless the options say otherwise.
func NewScanner(o Options) (*Scanner, error) {
	s := &Scanner{turn: make(chan struct{}, 1)}
	s.hid = hid{report: keyboardReport, boot: true, get: s.getReport, set: s.setReport}
	s.hid.reset()
	speed, err := o.speed(usb.SpeedFull, usb.SpeedLow)
	if err != nil {
		return nil, err
	}
	desc, err := Description{
		Vendor: vendorTest, Product: productScanner, Version: 0x0100,
		ManufacturerName: manufacturer, ProductName: "usbns bar-code scanner", SerialNumber: o.serial(),
		Configurations: []Configuration{{
			MilliAmps: 100,
			Interfaces: []Interface{{
				Class: classHID, SubClass: 1, Protocol: 1, // boot interface, keyboard
				Extra: s.hid.descriptor(),
				Endpoints: []Endpoint{
					{Address: scannerIn, Type: usb.Interrupt, MaxPacket: 8, Interval: interval(speed, 8)},
				},
			}},
		}},
	}.Build(speed)
	if err != nil {
		return nil, err
	}
	s.Device, err = New(Config{
		Speed:       speed,
		Descriptors: desc,
		Control:     s.control,
		Endpoints:   map[usb.Address]Handler{scannerIn: s.in},
		Changed:     s.reset,
	})
	return s, err
}

// Scan types text and then Enter, on a US keyboard, and returns when the host
// has taken all of it. One Scan waits for another. The error is a [*KeyError]
// for what cannot be typed, and then nothing was; [ErrNotConfigured] if no host
// uses the scanner; [usb.ErrGone]; or the cause of the end of ctx. After an error
// the host may have seen a part of the text, but no key stays down.
func (s *Scanner) Scan(ctx context.Context, text string) error {
	if err := s.scan(ctx, text); err != nil {
		return fmt.Errorf("scan %q: %w", text, err)
	}
	return nil
}

// Tell implements [Teller]: it scans text.
func (s *Scanner) Tell(ctx context.Context, text string) error { return s.Scan(ctx, text) }

func (s *Scanner) scan(ctx context.Context, text string) error {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-s.Gone():
		return usb.ErrGone
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	done, err := s.begin(text)
	if err != nil {
		return err
	}
	s.Wake(scannerIn)
	select {
	case err = <-done:
		return err
	case <-s.Gone():
		err = usb.ErrGone
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if s.abandon() {
		return err
	}
	return <-done
}

func (s *Scanner) begin(text string) (<-chan error, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	reports, err := typeText(text, s.leds&ledCapsLock != 0)
	if err != nil {
		return nil, err
	}
	select {
	case <-s.Gone():
		return nil, usb.ErrGone
	default:
	}
	if s.Configuration() == 0 {
		return nil, ErrNotConfigured
	}
	// The release that an abandoned Scan may have left stays in front.
	s.reports = append(s.reports, reports...)
	s.done = make(chan error, 1)
	return s.done, nil
}

// abandon forgets what is not typed yet, but for the release of a key that is
// down. It returns false when all was typed after all.
func (s *Scanner) abandon() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done == nil {
		return false
	}
	s.done = nil
	s.reports = s.reports[:len(s.reports)%2]
	return true
}

// end tells the Scan that waits.
func (s *Scanner) end(err error) {
	if s.done != nil {
		s.done <- err
		s.done = nil
	}
}

func (s *Scanner) in(u *usb.URB) (done bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.reports) == 0 {
		return false
	}
	s.last = s.reports[0]
	s.reports = s.reports[1:]
	if len(s.reports) == 0 {
		s.end(nil)
	}
	return Reply(u, s.last[:])
}

func (s *Scanner) control(u *usb.URB) (done bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hid.control(u)
}

func (s *Scanner) getReport(kind, id uint8) []byte {
	switch {
	case id != 0:
		return nil
	case kind == hidInput:
		return s.last[:]
	case kind == hidOutput:
		return []byte{s.leds}
	}
	return nil
}

func (s *Scanner) setReport(kind, id uint8, data []byte) bool {
	if kind != hidOutput || id != 0 || len(data) != 1 {
		return false
	}
	s.leds = data[0]
	return true
}

func (s *Scanner) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hid.reset()
	s.leds, s.last, s.reports = 0, keyReport{}, nil
	s.end(ErrNotConfigured)
}
