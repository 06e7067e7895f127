package wrap

import (
	"sync"
	"time"

	"github.com/usbns/usbns/usb"
)

// A flight is a transfer on its way: the submitter's, and the one that the device
// has. Shield.mu guards all but what inner and packets hold, which are the
// device's until back is set.
type flight struct {
	s     *Shield
	outer *usb.URB // nil once it is taken to be completed
	inner usb.URB

	list       *list
	prev, next *flight
	deadline   time.Time

	done     bool // has an outcome
	answered bool // which is in outer already, and not the device's
	asked    bool // was cancelled
	back     bool // the device has completed inner, or never had it
	pins     int  // who else uses it

	packets []usb.IsoPacket
}

var flights = sync.Pool{New: func() any { return new(flight) }}

// put gives f back if nobody needs it any more. Shield.mu is held.
func (f *flight) put() {
	if f.outer == nil && f.back && f.pins == 0 {
		*f = flight{packets: f.packets}
		flights.Put(f)
	}
}

func (f *flight) unpin() {
	f.pins--
	f.put()
}

// fill makes the device's transfer, in memory that the submitter's can lose.
func (f *flight) fill() {
	u := f.outer
	f.inner = usb.URB{
		Endpoint: u.Endpoint, Type: u.Type, Setup: u.Setup, Flags: u.Flags,
		Buffer: u.Buffer, MayKeep: u.MayKeep, StartFrame: u.StartFrame, Interval: u.Interval,
		Complete: innerCompleted, Submitter: f,
	}
	if !u.MayKeep {
		f.inner.Buffer = make([]byte, len(u.Buffer))
		if !u.In() {
			copy(f.inner.Buffer, u.Buffer)
		}
	}
	if u.Packets != nil {
		f.packets = append(f.packets[:0], u.Packets...)
		f.inner.Packets = f.packets
	}
}

// copyTo brings the device's outcome to u.
func (f *flight) copyTo(u *usb.URB) {
	in := &f.inner
	u.Status, u.Errors, u.StartFrame = f.plausible(in.Status), in.Errors, in.StartFrame
	if u.MayKeep {
		u.Buffer = in.Buffer
	}
	u.Actual = min(max(in.Actual, 0), len(u.Buffer))
	copyBack := u.In() && !u.MayKeep
	if copyBack && len(u.Packets) == 0 {
		copy(u.Buffer[:u.Actual], in.Buffer)
	}
	for i := range u.Packets {
		p, got := &u.Packets[i], &in.Packets[i]
		p.Actual, p.Status = min(max(got.Actual, 0), p.Length), f.plausible(got.Status)
		if copyBack {
			copy(u.Buffer[p.Offset:p.Offset+p.Actual], in.Buffer[p.Offset:])
		}
	}
}

const (
	statusInProgress = usb.Status(-115) // EINPROGRESS: to Linux, not completed
	lowestErrno      = usb.Status(-4095)
)

// plausible replaces what no device has to tell a driver: numbers that are no
// errno, that the transfer still runs, and that it was cancelled, if nobody did.
func (f *flight) plausible(s usb.Status) usb.Status {
	switch {
	case s > 0, s < lowestErrno, s == statusInProgress:
		return usb.StatusProtocol
	case !f.asked && (s == usb.StatusCancelled || s == usb.StatusUnlinked):
		return usb.StatusShutdown
	}
	return s
}

// leave takes f off its list, and returns its transfer, which is no longer
// shielded. Shield.mu is held.
func (f *flight) leave() *usb.URB {
	u := f.outer
	f.outer, u.Holder = nil, nil
	f.list.remove(f)
	return u
}

// settle gives the transfer its outcome and returns it, for the caller to
// complete once Shield.mu, which is held, is not.
func (f *flight) settle() *usb.URB {
	u := f.leave()
	if !f.answered {
		f.copyTo(u)
	}
	f.put()
	return u
}

// A list of flights, the oldest first.
type list struct{ head, tail *flight }

func (l *list) push(f *flight) {
	f.prev, f.next = l.tail, nil
	if l.tail == nil {
		l.head = f
	} else {
		l.tail.next = f
	}
	l.tail = f
}

func (l *list) remove(f *flight) {
	if f.prev == nil {
		l.head = f.next
	} else {
		f.prev.next = f.next
	}
	if f.next == nil {
		l.tail = f.prev
	} else {
		f.next.prev = f.prev
	}
	f.prev, f.next = nil, nil
}

// pending returns the oldest flight that has no outcome, nil if all have.
func (l *list) pending() *flight {
	f := l.head
	for f != nil && f.done {
		f = f.next
	}
	return f
}
