package wrap_test

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/emulate/emulatetest"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/wrap"
)

// The rules that every device keeps hold around every device.
func TestShieldConforms(t *testing.T) {
	tests := map[string]map[string]emulatetest.Test{
		"loopback": emulatetest.Loopback, "audio": emulatetest.Audio, "scanner": emulatetest.Endpoints, "disk": emulatetest.Endpoints,
	}
	for kind, more := range tests {
		t.Run(kind, func(t *testing.T) {
			for _, set := range []map[string]emulatetest.Test{emulatetest.Device, more} {
				emulatetest.Run(t, set, func(t *testing.T) usb.Device {
					d, err := emulate.Open(kind, emulate.Options{})
					must.OK(t, err)
					return wrap.NewShield(d, nil, 0)
				})
			}
		})
	}
}

// A stranger is a device that keeps all transfers, and those that were cancelled
// as well, until the test completes them.
type stranger struct {
	desc *usb.Descriptors
	gone chan struct{}

	mu        sync.Mutex
	kept      []*usb.URB
	cancelled int
}

func newStranger(t testing.TB) *stranger {
	d, err := emulate.NewLoopback(emulate.Options{})
	must.OK(t, err)
	t.Cleanup(func() { d.Close() })
	return &stranger{desc: d.Descriptors(), gone: make(chan struct{})}
}

func (d *stranger) Speed() usb.Speed              { return usb.SpeedHigh }
func (d *stranger) Descriptors() *usb.Descriptors { return d.desc }
func (d *stranger) Gone() <-chan struct{}         { return d.gone }

func (d *stranger) Submit(u *usb.URB) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.kept = append(d.kept, u)
	return nil
}

func (d *stranger) Cancel(*usb.URB) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cancelled++
}

func (d *stranger) Reset(ctx context.Context) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

func (d *stranger) Close() error {
	d.finish(usb.StatusNoDevice, 0)
	close(d.gone)
	return nil
}

// finish completes all that is kept, with data that is not to be seen.
func (d *stranger) finish(status usb.Status, actual int) int {
	d.mu.Lock()
	all := d.kept
	d.kept = nil
	d.mu.Unlock()
	for _, u := range all {
		u.Status, u.Actual = status, min(actual, len(u.Buffer))
		for i := range u.Buffer[:u.Actual] {
			u.Buffer[i] = 0xee
		}
		u.Complete(u)
	}
	return len(all)
}

func control(s usb.Setup, complete func(*usb.URB)) *usb.URB {
	return &usb.URB{Type: usb.Control, Endpoint: usb.Address(s.RequestType & usb.DirIn), Setup: s, Buffer: make([]byte, s.Length), Complete: complete}
}

var vendorIn = usb.Setup{RequestType: usb.DirIn | usb.KindVendor, Request: 1, Length: 64}

func TestCancelDoesNotWait(t *testing.T) {
	d := newStranger(t)
	s := wrap.NewShield(d, nil, time.Hour)
	completions := 0
	for _, u := range []*usb.URB{
		control(vendorIn, nil),
		{Type: usb.Bulk, Endpoint: 0x81, Buffer: make([]byte, 100<<10)},
		{Type: usb.Bulk, Endpoint: 0x81, Buffer: make([]byte, 100<<10), MayKeep: true},
		{Type: usb.Isochronous, Endpoint: 0x83, Buffer: make([]byte, 64), Packets: []usb.IsoPacket{{Length: 64}}},
		{Type: usb.Isochronous, Endpoint: 0x83, Buffer: make([]byte, 64), Packets: []usb.IsoPacket{{Length: 64}}, MayKeep: true},
	} {
		u.Complete = func(*usb.URB) { completions++ }
		must.OK(t, s.Submit(u))
		s.Cancel(u)
		s.Cancel(u)
		if completions != 1 || u.Status != usb.StatusCancelled || u.Actual != 0 {
			t.Errorf("%v: %d completions, %v, %d bytes", u.Type, completions, u.Status, u.Actual)
		}
		if kept := u.Buffer == nil; kept != u.MayKeep {
			t.Errorf("%v: the buffer is kept: %v", u.Type, kept)
		}
		if n := d.finish(usb.StatusOK, 1<<20); n != 1 || completions != 1 {
			t.Errorf("%v: the device had %d transfers, %d completions", u.Type, n, completions)
		}
		if !bytes.Equal(u.Buffer, make([]byte, len(u.Buffer))) {
			t.Errorf("%v: the buffer was written to after the end", u.Type)
		}
		completions = 0
	}
	if d.cancelled != 5 {
		t.Errorf("the device was asked %d times to cancel", d.cancelled)
	}
	must.OK(t, s.Close())
}

// late is a stranger that takes a transfer only when it was told to cancel it,
// which it then does not know of.
type late struct {
	*stranger
	submits, told, taken chan struct{}
}

func (d *late) Submit(u *usb.URB) error {
	close(d.submits)
	<-d.told
	return d.stranger.Submit(u)
}

func (d *late) Cancel(u *usb.URB) {
	select {
	case <-d.told:
		d.stranger.Cancel(u)
	default:
		close(d.told)
		<-d.taken
	}
}

// A transfer that is cancelled on its way to the device is cancelled there.
func TestCancelOvertakesSubmit(t *testing.T) {
	d := &late{newStranger(t), make(chan struct{}), make(chan struct{}), make(chan struct{})}
	s := wrap.NewShield(d, nil, time.Hour)
	completed := make(chan struct{})
	u := &usb.URB{Type: usb.Bulk, Endpoint: 0x81, Buffer: make([]byte, 8), Complete: func(*usb.URB) { close(completed) }}
	cancelled := make(chan struct{})
	go func() {
		defer close(cancelled)
		<-d.submits
		s.Cancel(u)
	}()
	must.OK(t, s.Submit(u))
	close(d.taken)
	must.Await(t, "the end of Cancel", cancelled)
	must.Await(t, "the end of the transfer", completed)
	if d.cancelled != 1 {
		t.Errorf("the device was asked %d times to cancel what it has", d.cancelled)
	}
	must.OK(t, s.Close())
}

func TestOrphansAreBounded(t *testing.T) {
	d := newStranger(t)
	s := wrap.NewShield(d, nil, time.Hour)
	submit := func() (*usb.URB, error) {
		u := &usb.URB{Type: usb.Interrupt, Endpoint: 0x81, Buffer: make([]byte, 8), Complete: func(*usb.URB) {}}
		return u, s.Submit(u)
	}
	for range wrap.MaxOrphans {
		u, err := submit()
		must.OK(t, err)
		s.Cancel(u)
	}
	if _, err := submit(); !errors.Is(err, usb.ErrTooMany) {
		t.Errorf("one more: %v", err)
	}
	d.finish(usb.StatusCancelled, 0)
	_, err := submit()
	must.OK(t, err)
	must.OK(t, s.Close())
}

// Descriptors and what only concerns the exporter's link are answered while the
// device says nothing.
func TestAnswersWithoutTheDevice(t *testing.T) {
	d := newStranger(t)
	s := wrap.NewShield(d, nil, time.Hour)
	get := func(setup usb.Setup) (usb.Status, []byte) {
		t.Helper()
		done := false
		u := control(setup, func(*usb.URB) { done = true })
		must.OK(t, s.Submit(u))
		if !done {
			t.Fatalf("%v waits", setup)
		}
		return u.Status, u.Buffer[:u.Actual]
	}
	raw := d.desc.Raw()
	if status, b := get(usb.GetDescriptor(usb.DescDevice, 0, 0, 64)); status != 0 || !bytes.Equal(b, raw.Device) {
		t.Errorf("device descriptor: %v, % x", status, b)
	}
	if status, b := get(usb.GetDescriptor(usb.DescConfiguration, 0, 0, 9)); status != 0 || !bytes.Equal(b, raw.Configurations[0][:9]) {
		t.Errorf("configuration: %v, % x", status, b)
	}
	if status, b := get(usb.GetDescriptor(usb.DescString, 2, raw.Strings[1].LangID, 255)); status != 0 || len(b) < 4 {
		t.Errorf("string: %v, % x", status, b)
	}
	for name, setup := range map[string]usb.Setup{
		"second configuration": usb.GetDescriptor(usb.DescConfiguration, 7, 0, 18),
		"string nobody named":  usb.GetDescriptor(usb.DescString, 0xee, 0x409, 18),
		"qualifier":            usb.GetDescriptor(usb.DescDeviceQualifier, 0, 0, 10),
	} {
		if status, _ := get(setup); status != usb.StatusStall {
			t.Errorf("%s: %v, want a stall", name, status)
		}
	}
	if status, b := get(usb.GetDescriptor(usb.DescDevice, 0, 0, 0)); status != 0 || len(b) != 0 {
		t.Errorf("nothing of the device descriptor: %v, % x", status, b)
	}
	for _, setup := range []usb.Setup{
		{RequestType: usb.ToDevice, Request: usb.ReqSetSEL, Length: 6},
		{RequestType: usb.ToDevice, Request: usb.ReqSetIsochDelay, Value: 40},
	} {
		if status, _ := get(setup); status != 0 {
			t.Errorf("%v: %v", setup, status)
		}
	}
	if n := d.finish(0, 0); n != 0 {
		t.Errorf("the device was asked %d times", n)
	}
	must.OK(t, s.Close())
}

func TestControlTransfersExpire(t *testing.T) {
	d := newStranger(t)
	s := wrap.NewShield(d, nil, 20*time.Millisecond)
	order := make(chan *usb.URB, 3)
	urbs := []*usb.URB{
		control(vendorIn, func(u *usb.URB) { order <- u }),
		control(usb.GetDescriptor(usb.DescDevice, 0, 0, 18), func(u *usb.URB) { order <- u }),
		control(vendorIn, func(u *usb.URB) { order <- u }),
	}
	for _, u := range urbs {
		must.OK(t, s.Submit(u))
	}
	for i, want := range []usb.Status{usb.StatusTimedOut, usb.StatusOK, usb.StatusTimedOut} {
		if u := <-order; u != urbs[i] || u.Status != want {
			t.Errorf("transfer %d: %v, want %v", i, u.Status, want)
		}
	}
	if n := d.finish(usb.StatusOK, 64); n != 2 || !bytes.Equal(urbs[0].Buffer, make([]byte, 64)) {
		t.Errorf("%d transfers were left, the buffer is % x", n, urbs[0].Buffer)
	}
	// The time of one begins with its submission.
	u := control(vendorIn, func(u *usb.URB) { order <- u })
	must.OK(t, s.Submit(u))
	d.finish(usb.StatusOK, 64)
	if <-order; u.Status != usb.StatusOK || u.Actual != 64 || u.Buffer[63] != 0xee {
		t.Errorf("in time: %v, %d bytes", u.Status, u.Actual)
	}
	must.OK(t, s.Close())
}

func TestResetDoesNotWaitForEver(t *testing.T) {
	d := newStranger(t)
	s := wrap.NewShield(d, nil, 20*time.Millisecond)
	done := 0
	for range 3 {
		must.OK(t, s.Submit(&usb.URB{Type: usb.Bulk, Endpoint: 0x81, Buffer: make([]byte, 8), Complete: func(*usb.URB) { done++ }}))
	}
	if err := s.Reset(t.Context()); !errors.Is(err, context.DeadlineExceeded) && err == nil {
		t.Error("a reset of a device that does not answer succeeds")
	}
	if done != 3 {
		t.Errorf("%d of 3 transfers completed", done)
	}
	must.OK(t, s.Close())
}

// What a device answers with is not always for a driver to see.
func TestStatusesAreMadePlausible(t *testing.T) {
	d := newStranger(t)
	s := wrap.NewShield(d, nil, time.Hour)
	for status, want := range map[usb.Status]usb.Status{
		0: 0, -32: -32, -71: -71, 99: usb.StatusProtocol, -4096: usb.StatusProtocol, -1 << 31: usb.StatusProtocol,
		-115: usb.StatusProtocol, -104: usb.StatusShutdown, -2: usb.StatusShutdown,
	} {
		u := &usb.URB{Type: usb.Bulk, Endpoint: 0x81, Buffer: make([]byte, 8), Complete: func(*usb.URB) {}}
		must.OK(t, s.Submit(u))
		if d.finish(status, 0); u.Status != want {
			t.Errorf("status %d becomes %d, want %d", status, u.Status, want)
		}
	}
	must.OK(t, s.Close())
}

func TestShieldTransfersDoNotAllocate(t *testing.T) {
	d, err := emulate.NewLoopback(emulate.Options{})
	must.OK(t, err)
	s := wrap.NewShield(d, nil, 0)
	defer s.Close()
	u := control(usb.Setup{RequestType: usb.DirIn, Request: usb.ReqGetStatus, Length: 2}, func(*usb.URB) {})
	u.MayKeep = true
	own := control(usb.GetDescriptor(usb.DescDevice, 0, 0, 18), func(*usb.URB) {})
	if n := testing.AllocsPerRun(1000, func() {
		if s.Submit(u) != nil || s.Submit(own) != nil {
			t.Fatal("submit failed")
		}
	}); n >= 1 {
		t.Errorf("%v allocations for two transfers", n)
	}
}
