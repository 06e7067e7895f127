package emulate

import (
	"context"
	"fmt"

	"github.com/usbns/usbns/usb"
)

// A Scanner is a bar-code scanner of the kind that is a keyboard to the host:
// what it reads, it types.
type Scanner struct {
	*Device
	hid hid
}

// NewScanner makes a scanner, at full speed unless the options say otherwise.
func NewScanner(o Options) (*Scanner, error) {
	speed, err := o.speed(usb.SpeedFull, usb.SpeedLow)
	if err != nil {
		return nil, err
	}
	s := &Scanner{hid: hid{descriptor: keyboardReport, boot: 1, input: len(keyReport{}), output: 1}}
	if err := s.hid.open(speed, o.describe(productScanner, "usbns bar-code scanner")); err != nil {
		return nil, err
	}
	s.Device = s.hid.dev
	return s, nil
}

// Scan types text and then Enter, on a US keyboard, and returns when the host
// has taken all of it. One Scan waits for another. The error is a [*KeyError]
// for what cannot be typed, and then nothing was; [ErrNotConfigured] if no host
// uses the scanner; [usb.ErrGone]; or the cause of the end of ctx. After an error
// the host may have seen a part of the text, but no key stays down.
func (s *Scanner) Scan(ctx context.Context, text string) error {
	err := s.hid.send(ctx, func() ([][]byte, error) {
		return typeText(text, s.hid.leds[0]&ledCapsLock != 0)
	})
	if err != nil {
		return fmt.Errorf("scan %q: %w", text, err)
	}
	return nil
}

// Tell implements [Teller]: it scans text.
func (s *Scanner) Tell(ctx context.Context, text string) error { return s.Scan(ctx, text) }
