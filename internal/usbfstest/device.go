//go:build linux

// Package usbfstest makes a [usb.Device] of a device that a kernel has, through
// its file in /dev/bus/usb: the tests for any usb.Device (package emulatetest)
// can so be run on the far side of a kernel. [Attach] puts a Device into the
// kernel first, as a worker does: over a socketpair, into a port of vhci_hcd. To
// attach takes longer than most tests, so a [Port] is opened by one after the other.
//
// It is for tests. A configuration, a setting and a halt are the kernel's
// business, which asks the device itself, so the requests for these become the
// ioctls; what the kernel refuses without asking, as a setting that does not
// exist, counts as a stall. A kernel configures a device that it has reset;
// here it is unconfigured again, as a usb.Device has to be.
//
// Drivers of the kernel must not have taken the device: their modules are not to
// be loaded.
package usbfstest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"unsafe"

	"github.com/usbns/usbns/usb"
)

// A Device is a device of the kernel. It implements [usb.Device].
type Device struct {
	file  *file
	speed usb.Speed
	desc  *usb.Descriptors
	gone  chan struct{}

	mu       sync.Mutex
	idle     sync.Cond // nothing is in flight
	closed   bool
	ended    bool // nothing is reaped any more
	inFlight map[uintptr]*transfer
	control  []*transfer // to endpoint 0, behind those in flight
	controls int         // in flight at endpoint 0
	busy     bool        // the kernel makes a request of its own, or resets
	claimed  []uint32
}

// A transfer is a URB at the kernel, or on its way there.
type transfer struct {
	urb  urb
	u    *usb.URB
	data []byte // what urb.buffer points to
}

// Open takes a device over, and leaves it unconfigured.
func Open(ctx context.Context, node string) (*Device, error) {
	f, err := openFile(node)
	if err != nil {
		return nil, err
	}
	d := &Device{file: f, gone: make(chan struct{}), inFlight: make(map[uintptr]*transfer)}
	d.idle.L = &d.mu
	speed, err := f.ioctl(ioctlGetSpeed, nil)
	if err != nil {
		f.f.Close()
		return nil, fmt.Errorf("speed of %s: %w", node, err)
	}
	d.speed = usb.Speed(speed)
	go d.reap()
	if d.desc, err = usb.ReadDescriptors(ctx, d); err == nil {
		err = d.configure(0)
	}
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("take over %s: %w", node, err)
	}
	return d, nil
}

// Speed implements [usb.Device].
func (d *Device) Speed() usb.Speed { return d.speed }

// Descriptors implements [usb.Device].
func (d *Device) Descriptors() *usb.Descriptors { return d.desc }

// Gone implements [usb.Device].
func (d *Device) Gone() <-chan struct{} { return d.gone }

// Submit implements [usb.Device].
func (d *Device) Submit(u *usb.URB) error {
	t, err := newTransfer(u)
	if err != nil {
		return err
	}
	d.mu.Lock()
	if d.closed || d.ended {
		d.mu.Unlock()
		return usb.ErrGone
	}
	if u.Type == usb.Control {
		d.control = append(d.control, t)
		d.next()
		return nil
	}
	err = d.start(t)
	d.mu.Unlock()
	return submitError(err)
}

func submitError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ESRCH): // no such endpoint, no configuration
		return usb.ErrNoEndpoint
	case errors.Is(err, syscall.ENODEV):
		return usb.ErrGone
	case errors.Is(err, syscall.ENOMEM):
		return usb.ErrTooMany
	}
	return fmt.Errorf("%w: %w", usb.ErrInvalid, err)
}

// start gives t to the kernel. mu is held.
func (d *Device) start(t *transfer) error {
	address := uintptr(unsafe.Pointer(&t.urb))
	d.inFlight[address] = t
	if _, err := d.file.ioctl(ioctlSubmit, unsafe.Pointer(&t.urb)); err != nil {
		delete(d.inFlight, address)
		return err
	}
	t.u.Holder = t
	return nil
}

// next starts what waits for endpoint 0, one after the other. It is called
// with mu held and gives it up.
func (d *Device) next() {
	var over []*usb.URB
	for len(d.control) > 0 && !d.busy {
		t := d.control[0]
		if request := d.kernels(t.u.Setup); request != nil {
			if d.controls > 0 {
				break
			}
			d.busy = true
			go d.ask(t.u, request)
		} else if err := d.start(t); err != nil {
			t.u.Status, t.u.Actual = usb.StatusStall, 0
			over = append(over, t.u)
		} else {
			d.controls++
		}
		d.control = d.control[1:]
	}
	d.mu.Unlock()
	for _, u := range over {
		u.Complete(u)
	}
}

// ask has the kernel make a request by itself.
func (d *Device) ask(u *usb.URB, request func() error) {
	u.Status, u.Actual = usb.StatusOK, 0
	if err := request(); errors.Is(err, syscall.ENODEV) {
		u.Status = usb.StatusNoDevice
	} else if err != nil {
		u.Status = usb.StatusStall
	}
	u.Complete(u)
	d.mu.Lock()
	d.busy = false
	d.idle.Broadcast()
	d.next()
}

// kernels returns how the kernel makes a request that changes what it knows of
// the device, nil for all others.
func (d *Device) kernels(s usb.Setup) func() error {
	switch {
	case s.Is(usb.ToDevice, usb.ReqSetConfiguration):
		return func() error { return d.configure(uint8(s.Value)) }
	case s.Is(usb.ToInterface, usb.ReqSetInterface):
		return func() error {
			pair := [2]uint32{uint32(s.Index), uint32(s.Value)}
			_, err := d.file.ioctl(ioctlSetInterface, unsafe.Pointer(&pair))
			return err
		}
	case s.Is(usb.ToEndpoint, usb.ReqClearFeature) && s.Value == usb.FeatureEndpointHalt:
		return func() error { return d.file.number(ioctlClearHalt, uint32(s.Index)) }
	}
	return nil
}

// configure chooses a configuration, 0 for none. The kernel refuses to while
// somebody has an interface. It is not called twice at a time.
func (d *Device) configure(value uint8) error {
	if d.desc.Configuration(value) == nil && value != 0 {
		return syscall.EINVAL
	}
	d.release()
	if err := d.file.number(ioctlSetConfiguration, uint32(value)); err != nil || value == 0 {
		return err
	}
	for _, i := range d.desc.Configuration(value).Interfaces {
		if err := d.file.number(ioctlClaim, uint32(i.Number)); err != nil {
			return err
		}
		d.claimed = append(d.claimed, uint32(i.Number))
	}
	return nil
}

func (d *Device) release() {
	for _, number := range d.claimed {
		d.file.number(ioctlRelease, number)
	}
	d.claimed = nil
}

// Cancel implements [usb.Device].
func (d *Device) Cancel(u *usb.URB) {
	d.mu.Lock()
	for i, t := range d.control {
		if t.u == u {
			d.control = append(d.control[:i:i], d.control[i+1:]...)
			d.mu.Unlock()
			u.Status, u.Actual = usb.StatusCancelled, 0
			u.Complete(u)
			return
		}
	}
	t, ok := u.Holder.(*transfer)
	ok = ok && d.inFlight[uintptr(unsafe.Pointer(&t.urb))] == t
	d.mu.Unlock()
	if ok {
		go d.discard(t) // waits for the transfer to end
	}
}

func (d *Device) discard(t *transfer) {
	d.file.ioctl(ioctlDiscard, unsafe.Pointer(&t.urb)) // fails where it has ended
}

// reap completes what the kernel has done, until the device or its file is gone.
func (d *Device) reap() {
	for {
		address, err := d.file.reap()
		if err != nil {
			break
		}
		d.mu.Lock()
		t := d.inFlight[address]
		delete(d.inFlight, address)
		if t.u.Type == usb.Control {
			d.controls--
		}
		d.idle.Broadcast()
		d.mu.Unlock()
		t.finish()
		t.u.Complete(t.u)
		d.mu.Lock()
		d.next()
	}
	d.mu.Lock()
	d.ended = true
	left := d.control
	for _, t := range d.inFlight {
		left = append(left, t)
	}
	d.control = nil
	clear(d.inFlight)
	d.idle.Broadcast()
	d.mu.Unlock()
	for _, t := range left {
		t.u.Status, t.u.Actual = usb.StatusNoDevice, 0
		t.u.Complete(t.u)
	}
	close(d.gone)
}

// cancelAll cancels what is in flight and waits for that. Nothing more is
// started until busy is false.
func (d *Device) cancelAll() {
	d.mu.Lock()
	for d.busy && !d.ended {
		d.idle.Wait()
	}
	d.busy = true
	waiting := d.control
	d.control = nil
	for _, t := range d.inFlight {
		go d.discard(t)
	}
	for len(d.inFlight) > 0 {
		d.idle.Wait()
	}
	d.mu.Unlock()
	for _, t := range waiting {
		t.u.Status, t.u.Actual = usb.StatusCancelled, 0
		t.u.Complete(t.u)
	}
}

// Reset implements [usb.Device]. It takes as long as the kernel does.
func (d *Device) Reset(context.Context) error {
	select {
	case <-d.gone:
		return fmt.Errorf("reset: %w", usb.ErrGone)
	default:
	}
	d.cancelAll()
	d.release()
	_, err := d.file.ioctl(ioctlReset, nil)
	if err == nil {
		err = d.file.number(ioctlSetConfiguration, 0)
	}
	d.mu.Lock()
	d.busy = false
	d.idle.Broadcast()
	d.next()
	if err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	return nil
}

// Close implements [usb.Device].
func (d *Device) Close() error {
	d.mu.Lock()
	was := d.closed
	d.closed = true
	d.mu.Unlock()
	if !was {
		d.cancelAll()
		d.file.f.Close()
	}
	<-d.gone
	return nil
}
