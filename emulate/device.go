package emulate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/usbns/usbns/usb"
)

// A Handler works on the transfer at the head of an endpoint's queue and
// reports whether it is done. A transfer that is not stays where it is, as if
// the device had answered NAK, and is handed over again after [Device.Wake];
// what it has moved so far may be kept in Actual, and anything else the handler
// wants to remember of it in Holder, which starts as nil.
//
// Done, Status and Actual are the outcome: [Reply], [Accept] and [Stall] set
// them for the usual cases. Status and Actual start as 0.
//
// All handlers of a device, and Config.Changed, are called one at a time,
// without a lock held. They must not block.
type Handler func(u *usb.URB) (done bool)

// Config says what a device is and does. Only Speed and Descriptors are
// required.
type Config struct {
	Speed       usb.Speed
	Descriptors *usb.Descriptors
	// Control gets the requests that chapter 9 leaves to a device: those of
	// class and vendor, and the descriptors of classes. A nil Control stalls
	// them.
	Control Handler
	// Endpoints are the handlers of all endpoints but 0, whatever the setting
	// they appear in. An endpoint without one never has anything to say, or
	// any room.
	Endpoints map[usb.Address]Handler
	// Changed is called when the configuration or the setting of an interface
	// was set anew, and after a reset, when the transfers that were ended by
	// it have completed.
	Changed func()
}

// A Device is a USB device made of a [Config]. It implements [usb.Device].
//
// It has no goroutine while nothing happens. Whoever brings something new (a
// transfer, a cancellation, data for an endpoint) works on all there is to do,
// one piece after the other; what others bring in the meantime is left to the
// one who works. So Complete may be called from within Submit, Cancel, Wake,
// Reset and Close.
type Device struct {
	speed     usb.Speed
	desc      *usb.Descriptors
	endpoints *usb.Endpoints // changed with mu held
	function  Handler
	changed   func()
	gone      chan struct{}
	goWork    func() // workOn as a value, so that to start it allocates nothing

	mu           sync.Mutex
	queues       [32]queue // all control transfers are in queue 0
	ready        uint32    // a bit for each queue whose head is to be tried
	turn         int       // where to look for the next bit
	doomed       int       // transfers that have a fate
	resets       []chan struct{}
	working      bool
	closed       bool
	remoteWakeup bool
}

var _ usb.Device = (*Device)(nil)

// queue holds the transfers of an endpoint in the order of their submission.
type queue struct {
	handle Handler
	halted bool
	urbs   []pending
}

// A pending transfer with a fate completes with that status, unless its
// handler, at work at that moment, is done with it first.
type pending struct {
	urb  *usb.URB
	fate usb.Status
}

const (
	// maxQueued bounds the transfers in flight on one endpoint.
	maxQueued = 1024
	// maxInline bounds the work that Submit and Wake do before they leave the
	// rest to a goroutine: a transfer that is submitted again whenever it
	// completes must not hold up its first submitter for ever.
	maxInline = 64
)

// New makes a device that is unconfigured, as one that was just plugged in.
func New(c Config) (*Device, error) {
	if c.Descriptors == nil {
		return nil, errors.New("emulate: a device needs descriptors")
	}
	if !c.Speed.Valid() {
		return nil, fmt.Errorf("emulate: a device cannot run at %v speed", c.Speed)
	}
	d := &Device{
		speed:     c.Speed,
		desc:      c.Descriptors,
		endpoints: usb.NewEndpoints(c.Descriptors),
		function:  c.Control,
		changed:   c.Changed,
		gone:      make(chan struct{}),
	}
	d.goWork = d.workOn
	if d.function == nil {
		d.function = Stall
	}
	d.queues[0].handle = d.control
	for a, h := range c.Endpoints {
		if !hasEndpoint(c.Descriptors, a) {
			return nil, fmt.Errorf("emulate: a handler for %v, which no setting of the device has", a)
		}
		d.queues[slot(a)].handle = h
	}
	return d, nil
}

func hasEndpoint(d *usb.Descriptors, a usb.Address) bool {
	for _, c := range d.Configurations() {
		for i := range c.Interfaces {
			if slices.Contains(addresses(&c.Interfaces[i]), a) {
				return true
			}
		}
	}
	return false
}

// addresses returns the endpoints of all settings of an interface.
func addresses(i *usb.Interface) []usb.Address {
	var list []usb.Address
	for _, alt := range i.Alternates {
		for _, e := range alt.Endpoints {
			list = append(list, e.Address)
		}
	}
	return list
}

// slot is the index of an endpoint's queue.
func slot(a usb.Address) int {
	if a.In() && a.Number() != 0 {
		return 16 + a.Number()
	}
	return a.Number()
}

// Speed implements [usb.Device].
func (d *Device) Speed() usb.Speed { return d.speed }

// Descriptors implements [usb.Device].
func (d *Device) Descriptors() *usb.Descriptors { return d.desc }

// Gone implements [usb.Device].
func (d *Device) Gone() <-chan struct{} { return d.gone }

// Configuration returns the value of the configuration the host has chosen, 0
// when it has chosen none.
func (d *Device) Configuration() uint8 { return d.endpoints.Configuration() }

// Alternate returns the setting of an interface the host has chosen, and false
// when there is no such interface at the moment.
func (d *Device) Alternate(iface uint8) (uint8, bool) { return d.endpoints.Alternate(iface) }

// Endpoint returns the endpoint at an address in the configuration and settings
// the host has chosen, and false if there is none.
func (d *Device) Endpoint(a usb.Address) (usb.Endpoint, bool) { return d.endpoints.Lookup(a) }

// Submit implements [usb.Device].
func (d *Device) Submit(u *usb.URB) error {
	d.mu.Lock()
	if err := d.enqueue(u); err != nil {
		d.mu.Unlock()
		return fmt.Errorf("%v: %w", u.Endpoint, err)
	}
	d.work()
	return nil
}

func (d *Device) enqueue(u *usb.URB) error {
	if d.closed {
		return usb.ErrGone
	}
	e, ok := d.endpoints.Lookup(u.Endpoint)
	if !ok {
		return usb.ErrNoEndpoint
	}
	if e.Type != u.Type || !sound(u, e) {
		return usb.ErrInvalid
	}
	i := slot(u.Endpoint)
	q := &d.queues[i]
	if len(q.urbs) == maxQueued {
		return usb.ErrTooMany
	}
	u.Status, u.Actual, u.Errors, u.Holder = usb.StatusOK, 0, 0, nil
	q.urbs = append(q.urbs, pending{urb: u})
	d.ready |= 1 << i
	return nil
}

// sound checks what a handler would otherwise trip over.
func sound(u *usb.URB, e usb.Endpoint) bool {
	switch u.Type {
	case usb.Control:
		return u.Packets == nil && len(u.Buffer) >= int(u.Setup.Length)
	case usb.Isochronous:
		for i := range u.Packets {
			p := &u.Packets[i]
			if p.Offset < 0 || p.Length < 0 || p.Length > perInterval(e) || p.Offset > len(u.Buffer)-p.Length {
				return false
			}
			p.Actual, p.Status = 0, usb.StatusOK
		}
		return len(u.Packets) > 0
	}
	return u.Packets == nil
}

// perInterval is how many bytes an isochronous endpoint moves in one interval:
// several packets from high speed on (USB 2.0, table 9-13), several bursts of them
// from super speed on (USB 3.2, table 9-27).
func perInterval(e usb.Endpoint) int {
	packets := (1 + int(e.MaxPacket>>11&3)) * (1 + int(e.Burst)) * (1 + int(e.Companion&3))
	return int(e.MaxPacket&0x7ff) * packets
}

// Cancel implements [usb.Device]. A cancelled transfer does not wait for those
// before it.
func (d *Device) Cancel(u *usb.URB) {
	d.mu.Lock()
	urbs := d.queues[slot(u.Endpoint)].urbs
	for i := range urbs {
		if urbs[i].urb == u {
			d.doom(&urbs[i], usb.StatusCancelled)
			break
		}
	}
	d.work()
}

// Wake has the transfer at the head of an endpoint's queue handed to its
// handler again: there is data now, or room. A handler's call only takes note.
// Elsewhere it must not be called with a lock held that a handler or a Complete
// function takes.
func (d *Device) Wake(a usb.Address) {
	d.mu.Lock()
	d.ready |= 1 << slot(a)
	d.work()
}

// Halt stalls an endpoint until the host clears that. What is queued there
// completes with usb.StatusStall. A handler gets the same with [Stall]. Endpoint
// 0 is never halted.
func (d *Device) Halt(a usb.Address) {
	if a.Number() == 0 {
		return
	}
	d.mu.Lock()
	d.queues[slot(a)].halted = true
	d.ready |= 1 << slot(a)
	d.work()
}

// Reset implements [usb.Device]. It must not be called from a handler or a
// Complete function, for which it would wait.
func (d *Device) Reset(ctx context.Context) error {
	done := make(chan struct{})
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return fmt.Errorf("reset: %w", usb.ErrGone)
	}
	d.resets = append(d.resets, done)
	d.work()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Close implements [usb.Device]. It does not wait for a Complete that another
// goroutine is in; Gone tells when that has returned.
func (d *Device) Close() error {
	d.mu.Lock()
	if !d.closed {
		d.closed = true
		d.doomAll(^uint32(0), usb.StatusShutdown)
	}
	d.work()
	return nil
}
