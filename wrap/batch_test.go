package wrap_test

import (
	"strings"
	"testing"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/wrap"
)

// A batcher notes what is asked of it.
type batcher struct {
	usb.Device
	calls []string
}

func (b *batcher) Hold()    { b.calls = append(b.calls, "hold") }
func (b *batcher) Release() { b.calls = append(b.calls, "release") }
func (b *batcher) Watch(hold, release func()) (stop func()) {
	hold()
	release()
	return func() { b.calls = append(b.calls, "stop") }
}

// TestBatchesPassThrough looks at both sides of a Shield, around a device that has
// batches and around one that has not.
func TestBatchesPassThrough(t *testing.T) {
	dev, err := emulate.NewLoopback(emulate.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b := &batcher{Device: dev}
	note := func(s string) func() { return func() { b.calls = append(b.calls, s) } }
	for _, d := range []usb.Device{b, dev} {
		s := wrap.NewShield(d, nil, 0)
		stop := s.Watch(note("watched"), note("released"))
		s.Hold()
		s.Release()
		stop()
		defer s.Close()
	}
	if got := strings.Join(b.calls, " "); got != "watched released hold release stop" {
		t.Errorf("calls %q", got)
	}
}
