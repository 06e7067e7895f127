package emulate

import (
	"math/bits"
	"slices"

	"github.com/usbns/usbns/usb"
)

// work does what there is to do, unless someone else is at it. It is called
// with mu held and returns without.
func (d *Device) work() {
	if d.working {
		d.mu.Unlock()
		return
	}
	d.working = true
	d.workUntil(maxInline)
}

// workOn takes the work over from another goroutine.
func (d *Device) workOn() {
	d.mu.Lock()
	d.workUntil(-1)
}

// workUntil works until nothing can be done, or, after so many transfers,
// leaves the rest to a goroutine of its own.
func (d *Device) workUntil(budget int) {
	for {
		switch {
		case len(d.resets) > 0:
			d.reset()
		case d.doomed > 0:
			d.sweep(0)
		case d.ready != 0 && budget == 0:
			go d.goWork()
			d.mu.Unlock()
			return
		case d.ready != 0:
			d.try(d.nextReady())
			budget--
		default:
			d.rest()
			return
		}
	}
}

// rest is the end of work: nothing is in flight on a device that is closed.
func (d *Device) rest() {
	d.working = false
	if d.closed {
		select {
		case <-d.gone:
		default:
			close(d.gone)
		}
	}
	d.mu.Unlock()
}

// nextReady takes a queue whose head is to be tried, each in its turn.
func (d *Device) nextReady() int {
	i := (bits.TrailingZeros32(bits.RotateLeft32(d.ready, -d.turn)) + d.turn) % 32
	d.ready &^= 1 << i
	d.turn = (i + 1) % 32
	return i
}

// try hands the head of a queue to its handler.
func (d *Device) try(i int) {
	q := &d.queues[i]
	if len(q.urbs) == 0 {
		return
	}
	u := q.urbs[0].urb
	if q.halted {
		Stall(u)
	} else if q.handle == nil || !d.handle(q, u) {
		return
	}
	if u.Status == usb.StatusStall && i != 0 {
		q.halted = true
	}
	d.complete(q, 0)
	if len(q.urbs) > 0 {
		d.ready |= 1 << i
	}
}

func (d *Device) handle(q *queue, u *usb.URB) bool {
	d.mu.Unlock()
	defer d.mu.Lock()
	return q.handle(u)
}

// complete takes a transfer off its queue and completes it.
func (d *Device) complete(q *queue, i int) {
	p := q.urbs[i]
	q.urbs = slices.Delete(q.urbs, i, i+1)
	if p.fate != usb.StatusOK {
		d.doomed--
	}
	u := p.urb
	if u.Flags&usb.FlagShortNotOK != 0 && u.Status == usb.StatusOK && u.In() && u.Actual < wanted(u) {
		u.Status = usb.StatusRemoteShort
	}
	d.mu.Unlock()
	u.Complete(u)
	d.mu.Lock()
}

// wanted is how much data a transfer asks for.
func wanted(u *usb.URB) int {
	switch u.Type {
	case usb.Control:
		return int(u.Setup.Length)
	case usb.Isochronous:
		return 0
	}
	return len(u.Buffer)
}

// doom gives a transfer its fate, if it has none.
func (d *Device) doom(p *pending, fate usb.Status) {
	if p.fate == usb.StatusOK {
		p.fate = fate
		d.doomed++
	}
}

// doomAll dooms what is queued in a set of queues, a bit each.
func (d *Device) doomAll(queues uint32, fate usb.Status) {
	for i := range d.queues {
		if queues&(1<<i) == 0 {
			continue
		}
		urbs := d.queues[i].urbs
		for j := range urbs {
			d.doom(&urbs[j], fate)
		}
	}
}

// sweep completes the doomed transfers of all queues from the first one named.
func (d *Device) sweep(first int) {
	for i := first; i < len(d.queues); i++ {
		q := &d.queues[i]
		for {
			j := slices.IndexFunc(q.urbs, func(p pending) bool { return p.fate != usb.StatusOK })
			if j < 0 {
				break
			}
			q.urbs[j].urb.Status = q.urbs[j].fate
			d.ready |= 1 << i // the head may be another one now
			d.complete(q, j)
		}
	}
}

// reset does what all who wait for one have asked for.
func (d *Device) reset() {
	resets := d.resets
	d.resets = nil
	d.endpoints.Reset()
	d.remoteWakeup = false
	d.renew(^uint32(0), usb.StatusCancelled)
	d.sweep(0)
	d.tellChanged()
	for _, done := range resets {
		close(done)
	}
}

// renew ends what is queued in a set of queues and clears their halts.
func (d *Device) renew(queues uint32, fate usb.Status) {
	for i := range d.queues {
		if queues&(1<<i) != 0 {
			d.queues[i].halted = false
		}
	}
	d.doomAll(queues, fate)
}

// tellChanged is called by the one who works, with mu held.
func (d *Device) tellChanged() {
	if d.changed == nil {
		return
	}
	d.mu.Unlock()
	d.changed()
	d.mu.Lock()
}
