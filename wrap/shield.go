package wrap

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/usbns/usbns/usb"
)

// Defaults and limits of a Shield.
const (
	// DefaultControlTimeout is what Linux gives a control transfer of its own
	// (USB_CTRL_GET_TIMEOUT in include/linux/usb.h).
	DefaultControlTimeout = 5 * time.Second
	// MaxOrphans is how many transfers may have been cancelled here and not come
	// back from the device. With so many Submit fails.
	MaxOrphans = 1024
)

// A Shield is a device around the device of a stranger. It implements
// [usb.Device]. See the package comment for what it does.
type Shield struct {
	dev     usb.Device
	desc    *usb.Descriptors
	timeout time.Duration
	gone    chan struct{}

	deliverFunc func() // deliverOn as a value, so that to start it allocates nothing

	// running counts transfers whose Complete has not returned. It is raised
	// under mu and not once closed is set.
	running sync.WaitGroup

	mu         sync.Mutex
	closed     bool // the device is gone
	control    list // transfers of endpoint 0, in the order of their submission
	others     list
	orphans    int
	delivering bool // somebody completes transfers of endpoint 0
	timer      *time.Timer
	armed      bool // timer runs
}

var _ usb.Device = (*Shield)(nil)

// NewShield puts a Shield around dev, which belongs to it from here on. desc is
// what was read and judged of it, nil for the device's own Descriptors. timeout
// is for each control transfer on endpoint 0, and for a reset; 0 is
// DefaultControlTimeout.
func NewShield(dev usb.Device, desc *usb.Descriptors, timeout time.Duration) *Shield {
	if desc == nil {
		desc = dev.Descriptors()
	}
	if timeout <= 0 {
		timeout = DefaultControlTimeout
	}
	s := &Shield{dev: dev, desc: desc, timeout: timeout, gone: make(chan struct{})}
	s.deliverFunc = s.deliverOn
	go s.end()
	return s
}

// end closes gone behind the last Complete.
func (s *Shield) end() {
	<-s.dev.Gone()
	s.mu.Lock()
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
	}
	s.mu.Unlock()
	s.running.Wait()
	close(s.gone)
}

// Speed implements [usb.Device].
func (s *Shield) Speed() usb.Speed { return s.dev.Speed() }

// Descriptors implements [usb.Device].
func (s *Shield) Descriptors() *usb.Descriptors { return s.desc }

// Gone implements [usb.Device].
func (s *Shield) Gone() <-chan struct{} { return s.gone }

// Close closes the device.
func (s *Shield) Close() error {
	err := s.dev.Close()
	<-s.gone
	return err
}

// Submit implements [usb.Device].
func (s *Shield) Submit(u *usb.URB) error {
	list := &s.others
	var own bool
	var b []byte
	if u.Type == usb.Control && u.Endpoint.Number() == 0 {
		if len(u.Buffer) != int(u.Setup.Length) {
			return fmt.Errorf("%w: a control transfer of length %d with %d bytes", usb.ErrInvalid, u.Setup.Length, len(u.Buffer))
		}
		list = &s.control
		b, own = s.ownAnswer(u.Setup)
	}
	s.mu.Lock()
	f, err := s.begin(u, list)
	switch {
	case err != nil:
		s.mu.Unlock()
		return err
	case own:
		answer(u, b)
		f.answered, f.done, f.back = true, true, true
		s.deliver()
		return nil
	}
	f.fill()
	f.pins = 1 // until pass is over
	if list == &s.control {
		s.arm(f)
	}
	s.mu.Unlock()
	return s.pass(f)
}

// begin takes note of u. mu is held.
func (s *Shield) begin(u *usb.URB, l *list) (*flight, error) {
	switch {
	case s.closed:
		return nil, usb.ErrGone
	case s.orphans >= MaxOrphans:
		return nil, usb.ErrTooMany
	}
	s.running.Add(1)
	f := flights.Get().(*flight)
	f.s, f.outer, f.list, u.Holder = s, u, l, f
	l.push(f)
	return f, nil
}

// pass submits f to the device.
func (s *Shield) pass(f *flight) error {
	err := s.dev.Submit(&f.inner)
	s.mu.Lock()
	refused := err != nil && f.outer != nil && !f.done
	switch {
	case refused:
		f.back = true
		f.leave()
	case err != nil: // and it was cancelled meanwhile
		f.back = true
		s.orphans--
	case f.asked && !f.back:
		// The cancellation may have come before the device had it.
		s.mu.Unlock()
		s.dev.Cancel(&f.inner)
		s.mu.Lock()
	}
	f.unpin()
	if !refused {
		s.mu.Unlock()
		return nil
	}
	s.running.Done()
	s.deliver()
	return err
}

// innerCompleted is the Complete of what the device is given.
func innerCompleted(inner *usb.URB) {
	f := inner.Submitter.(*flight)
	s := f.s
	s.mu.Lock()
	f.back = true
	switch {
	case f.outer == nil || f.done:
		s.orphans--
		f.put()
		s.mu.Unlock()
	case f.list == &s.control:
		f.done = true
		s.deliver()
	default:
		u := f.settle()
		s.mu.Unlock()
		s.complete(u)
	}
}

// complete completes a transfer that was settled.
func (s *Shield) complete(u *usb.URB) {
	u.Complete(u)
	s.running.Done()
}

// maxInline bounds how many transfers Submit completes before it leaves the rest
// to a goroutine: their Complete may submit others.
const maxInline = 64

// deliver completes the transfers of endpoint 0 that are done, in order. It is
// called with mu held and gives it up.
func (s *Shield) deliver() {
	if s.delivering {
		s.mu.Unlock()
		return
	}
	s.delivering = true
	s.deliverUntil(maxInline)
}

func (s *Shield) deliverOn() {
	s.mu.Lock()
	s.deliverUntil(-1)
}

func (s *Shield) deliverUntil(budget int) {
	for f := s.control.head; f != nil && f.done; f = s.control.head {
		if budget == 0 {
			s.mu.Unlock()
			go s.deliverFunc()
			return
		}
		budget--
		u := f.settle()
		s.mu.Unlock()
		s.complete(u)
		s.mu.Lock()
	}
	s.delivering = false
	s.mu.Unlock()
}

// Cancel implements [usb.Device]. The transfer has completed when it returns, or
// is about to in another goroutine, whatever the device does.
func (s *Shield) Cancel(u *usb.URB) {
	s.mu.Lock()
	f, ok := u.Holder.(*flight)
	if !ok || f.s != s || f.outer != u {
		s.mu.Unlock()
		return
	}
	f.pins++
	s.cancel(f)
}

// cancel ends f, which the caller has pinned. It is called with mu held and
// gives it up.
func (s *Shield) cancel(f *flight) {
	s.askBack(f)
	if f.outer == nil {
		f.unpin()
		s.mu.Unlock()
		return
	}
	if !f.done {
		s.orphan(f, usb.StatusCancelled)
	}
	u := f.settle()
	f.unpin()
	s.mu.Unlock()
	s.complete(u)
	s.mu.Lock()
	s.deliver()
}

// askBack cancels f at the device, which may complete it now and then.
func (s *Shield) askBack(f *flight) {
	if !f.back && f.outer != nil {
		f.asked = true
		s.mu.Unlock()
		s.dev.Cancel(&f.inner)
		s.mu.Lock()
	}
}

// orphan gives the transfer of f an outcome that is not the device's. mu is held.
func (s *Shield) orphan(f *flight, status usb.Status) {
	u := f.outer
	f.done, f.answered = true, true
	if !f.back {
		s.orphans++
		if u.MayKeep {
			u.Buffer = nil
		}
	}
	u.Status, u.Actual, u.Errors = status, 0, len(u.Packets)
	for i := range u.Packets {
		u.Packets[i].Actual, u.Packets[i].Status = 0, status
	}
}

// arm sets the time at which f ends. mu is held.
func (s *Shield) arm(f *flight) {
	f.deadline = time.Now().Add(s.timeout)
	switch {
	case s.armed:
	case s.timer == nil:
		s.timer = time.AfterFunc(s.timeout, s.expire)
	default:
		s.timer.Reset(s.timeout)
	}
	s.armed = true
}

// expire ends the control transfers whose time is over.
func (s *Shield) expire() {
	s.mu.Lock()
	s.armed = false
	for f := s.control.pending(); f != nil; f = s.control.pending() {
		if left := time.Until(f.deadline); left > 0 {
			s.armed = true
			s.timer.Reset(left)
			break
		}
		f.pins++
		s.askBack(f)
		if f.outer != nil && !f.done {
			s.orphan(f, usb.StatusTimedOut)
		}
		f.unpin()
	}
	s.deliver()
}

// Reset ends the transfers in flight and resets the device.
func (s *Shield) Reset(ctx context.Context) error {
	s.mu.Lock()
	var all []*flight
	for _, l := range []*list{&s.control, &s.others} {
		for f := l.head; f != nil; f = f.next {
			f.pins++
			all = append(all, f)
		}
	}
	s.mu.Unlock()
	for _, f := range all {
		s.mu.Lock()
		s.cancel(f)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, s.timeout,
		fmt.Errorf("%w: device did not reset within %v", os.ErrDeadlineExceeded, s.timeout))
	defer cancel()
	return s.dev.Reset(ctx)
}
