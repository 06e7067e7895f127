// Package emulatetest holds tests that a [usb.Device] must pass: the contract of
// the interface and chapter 9 of the USB specification. They are named, and do
// not care what the device is or how far away: give them one made by package
// emulate, one that went through an exporter and an importer, or a driver for
// hardware.
//
//	emulatetest.Run(t, emulatetest.Device, open)
//
// [Device] is for every device, [Endpoints] for those that have an endpoint to
// put transfers to. The tests of [Loopback] and [Audio] need the device of that
// name of package emulate at the far end and show that data gets through.
//
// Nothing is expected to happen at once, or before anything else that the
// contract does not put in order. Waiting is bounded only so that a hang
// becomes a failure.
package emulatetest

import (
	"context"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/usbns/usbns/usb"
)

// A Test puts a fresh device, unconfigured, to one question. It may close it.
type Test func(t *testing.T, d usb.Device)

// Run runs each of a set of tests, in the order of their names, as a subtest
// with a device of its own, which is closed at the end.
func Run(t *testing.T, tests map[string]Test, open func(t *testing.T) usb.Device) {
	for _, name := range slices.Sorted(maps.Keys(tests)) {
		t.Run(name, func(t *testing.T) {
			d := open(t)
			t.Cleanup(func() {
				if err := d.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
				await(t, "Gone after Close", d.Gone())
			})
			tests[name](t, d)
		})
	}
}

// watchdog is when waiting is a hang.
const watchdog = time.Minute

// bounded is the context of a call that must come to an end by itself.
func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), watchdog)
	t.Cleanup(cancel)
	return ctx
}

func await(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(watchdog):
		t.Fatalf("%s: still waiting after %v", what, watchdog)
	}
}

// A flight is a URB on its way.
type flight struct {
	urb         usb.URB
	done        chan struct{} // closed at the first completion
	completions atomic.Int32
}

func newFlight(u usb.URB) *flight {
	f := &flight{urb: u, done: make(chan struct{})}
	f.urb.Complete = func(*usb.URB) {
		if f.completions.Add(1) == 1 {
			close(f.done)
		}
	}
	return f
}

func submit(t *testing.T, d usb.Device, u usb.URB) *flight {
	t.Helper()
	f := newFlight(u)
	if err := d.Submit(&f.urb); err != nil {
		t.Fatalf("Submit to %v: %v", u.Endpoint, err)
	}
	return f
}

// wait returns the outcome of a flight.
func (f *flight) wait(t *testing.T) usb.Status {
	t.Helper()
	await(t, f.urb.Endpoint.String(), f.done)
	return f.urb.Status
}

func (f *flight) isDone() bool {
	select {
	case <-f.done:
		return true
	default:
		return false
	}
}

// checkOnce is for when nothing can complete any more.
func checkOnce(t *testing.T, flights []*flight) {
	t.Helper()
	for i, f := range flights {
		if n := f.completions.Load(); n != 1 {
			t.Errorf("transfer %d completed %d times", i, n)
		}
	}
}

func closeAndWait(t *testing.T, d usb.Device) {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	await(t, "Gone after Close", d.Gone())
}

// controlIn makes a control transfer that must succeed and returns its data.
func controlIn(t *testing.T, d usb.Device, s usb.Setup) []byte {
	t.Helper()
	b := make([]byte, s.Length)
	n, err := usb.ControlTransfer(bounded(t), d, s, b)
	if err != nil {
		t.Fatalf("%v: %v", s, err)
	}
	return b[:n]
}

// controlOut makes a control transfer that must succeed.
func controlOut(t *testing.T, d usb.Device, s usb.Setup, data []byte) {
	t.Helper()
	s.Length = uint16(len(data))
	n, err := usb.ControlTransfer(bounded(t), d, s, data)
	if err != nil {
		t.Fatalf("%v: %v", s, err)
	}
	if n != len(data) {
		t.Fatalf("%v: moved %d bytes", s, n)
	}
}

// controlStall makes a control transfer that the device must refuse.
func controlStall(t *testing.T, d usb.Device, s usb.Setup) {
	t.Helper()
	f := submit(t, d, controlURB(s))
	if got := f.wait(t); got != usb.StatusStall {
		t.Errorf("%v: status %v, want %v", s, got, usb.StatusStall)
	}
}

func controlURB(s usb.Setup) usb.URB {
	u := usb.URB{Type: usb.Control, Setup: s, Buffer: make([]byte, s.Length)}
	if s.In() {
		u.Endpoint, u.Flags = usb.DirIn, usb.FlagDirIn
	}
	return u
}

// configure chooses the first configuration.
func configure(t *testing.T, d usb.Device) *usb.Configuration {
	t.Helper()
	c := &d.Descriptors().Configurations()[0]
	controlOut(t, d, usb.SetConfiguration(c.Value), nil)
	return c
}

// idleIn configures the device and returns a bulk or interrupt IN endpoint. A
// fresh device has nothing to say there.
func idleIn(t *testing.T, d usb.Device) usb.Endpoint {
	t.Helper()
	for _, i := range configure(t, d).Interfaces {
		for _, e := range i.Alternates[0].Endpoints {
			if e.Address.In() && e.Type != usb.Isochronous {
				return e
			}
		}
	}
	t.Fatal("the device has no bulk or interrupt IN endpoint")
	return usb.Endpoint{}
}

func inURB(e usb.Endpoint) usb.URB {
	return usb.URB{
		Endpoint: e.Address, Type: e.Type, Flags: usb.FlagDirIn,
		Buffer: make([]byte, e.MaxPacket&0x7ff), Interval: int32(e.Interval),
	}
}

// receive returns false when nothing comes before the watchdog barks.
func receive[T any](t *testing.T, c <-chan T) (v T, ok bool) {
	t.Helper()
	select {
	case v = <-c:
		return v, true
	case <-time.After(watchdog):
		return v, false
	}
}
