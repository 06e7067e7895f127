package wrap

import "github.com/usbns/usbns/usb"

var _ usb.Batcher = (*Shield)(nil)

// Hold implements [usb.Batcher]. Where the device does not, it does nothing.
func (s *Shield) Hold() {
	if b, ok := s.dev.(usb.Batcher); ok {
		b.Hold()
	}
}

// Release implements [usb.Batcher].
func (s *Shield) Release() {
	if b, ok := s.dev.(usb.Batcher); ok {
		b.Release()
	}
}

// Watch implements [usb.Batcher].
func (s *Shield) Watch(hold, release func()) (stop func()) {
	if b, ok := s.dev.(usb.Batcher); ok {
		return b.Watch(hold, release)
	}
	return func() {}
}
