package usbip

import (
	"slices"

	"github.com/usbns/usbns/usb"
)

// maxLate is how many transfers are remembered whose RET_SUBMIT may still
// come. Servers that answer an unlink with 0 when it succeeded never send it.
const maxLate = 64

// read is the reader goroutine: it completes every URB.
func (i *Importer) read() {
	for {
		if err := i.readOne(); err != nil {
			i.fail(explainEOF(err))
			break
		}
	}
	i.pause()
	i.active.Wait()
	i.completeAll()
	i.dropInput()
	close(i.gone)
}

// completeAll ends the transfers that have no answer. None can be added, since
// the link has failed.
func (i *Importer) completeAll() {
	i.mu.Lock()
	all := i.requests
	i.requests = nil
	i.mu.Unlock()
	for seq, r := range all {
		i.mu.Lock()
		var u *usb.URB
		if seq == r.seq {
			u = i.forget(r)
		}
		i.mu.Unlock()
		if u != nil {
			u.Status, u.Actual, u.Errors = usb.StatusNoDevice, 0, 0
			u.Complete(u)
		}
	}
}

func (i *Importer) readOne() error {
	b, err := i.next(HeaderSize)
	if err != nil {
		return err
	}
	switch c := PeekCommand(b); c {
	case CommandRetSubmit:
		return i.retSubmit(ParseRetSubmit(b))
	case CommandRetUnlink:
		i.retUnlink(ParseRetUnlink(b))
		return nil
	default:
		if i.echoed > 0 {
			return i.skipEcho()
		}
		return protocolError("command %d in a reply", c)
	}
}

// skipEcho reads over the data that some servers send back behind the
// RET_SUBMIT of an OUT transfer. Only what follows it gives that away.
func (i *Importer) skipEcho() error {
	i.r -= HeaderSize
	n := i.echoed
	i.echoed = 0
	return i.discard(n)
}

// find returns the request of a submit or unlink, nil if there is none. An
// answer can be here before who wrote the data of the request has taken note
// that it is gone.
func (i *Importer) find(seq uint32) *request {
	i.mu.Lock()
	r := i.requests[seq]
	if r == nil || !r.unsent() {
		i.mu.Unlock()
		return r
	}
	i.mu.Unlock()
	i.pause()
	i.mu.Lock()
	for r.unsent() && i.err == nil {
		i.sent.Wait()
	}
	if i.err != nil {
		r = nil
	}
	i.mu.Unlock()
	i.resume()
	return r
}

func (i *Importer) retSubmit(ret RetSubmit) error {
	r := i.find(ret.Seq)
	if r == nil || r.seq != ret.Seq {
		return protocolError("RET_SUBMIT for the transfer %d, which is not in flight", ret.Seq)
	}
	if ret.Actual < 0 || int64(ret.Actual) > int64(r.size) {
		return protocolError("actual_length %d of a transfer of %d bytes", ret.Actual, r.size)
	}
	if r.urb == nil {
		return i.skipLate(r, ret)
	}
	u := r.urb
	u.Actual = int(ret.Actual)
	i.echoed = 0
	if !r.in {
		i.echoed = u.Actual
	} else {
		if err := i.readFull(u.Buffer[:u.Actual]); err != nil {
			return err
		}
	}
	if r.packets > 0 {
		if err := i.readPackets(u, ret); err != nil {
			return err
		}
	}
	u.Status = usb.Status(ret.Status)
	u.Errors, u.StartFrame = int(ret.Errors), ret.StartFrame
	i.finish(r)
	return nil
}

// readPackets reads the packets of an isochronous answer. Offsets and lengths
// are those that were asked for, whatever the peer says.
func (i *Importer) readPackets(u *usb.URB, ret RetSubmit) error {
	if ret.Packets < 0 || int64(ret.Packets) > int64(len(u.Packets)) {
		return protocolError("%d packets of a transfer of %d", ret.Packets, len(u.Packets))
	}
	sum := 0
	for n := range u.Packets {
		p := &u.Packets[n]
		if n >= int(ret.Packets) {
			p.Actual, p.Status = 0, usb.StatusXDev
			continue
		}
		b, err := i.next(IsoPacketSize)
		if err != nil {
			return noEOF(err)
		}
		got := ParseIsoPacket(b)
		if got.Actual < 0 || got.Actual > p.Length {
			return protocolError("actual_length %d of an isochronous packet of %d bytes", got.Actual, p.Length)
		}
		p.Actual, p.Status = got.Actual, got.Status
		sum += p.Actual
	}
	if !u.In() {
		return nil
	}
	if sum != u.Actual {
		return protocolError("isochronous packets of %d bytes in %d bytes of data", sum, u.Actual)
	}
	spread(u.Buffer, u.Packets, u.Actual)
	return nil
}

// finish completes the transfer of r, whose URB tells the outcome.
func (i *Importer) finish(r *request) {
	u := r.urb
	if u.Type == usb.Control && i.endpoints != nil {
		i.endpoints.Observe(u.Setup, u.Status)
	}
	i.mu.Lock()
	i.forget(r)
	delete(i.requests, r.seq)
	i.mu.Unlock()
	*r = request{}
	requestPool.Put(r)
	u.Complete(u)
}

// retUnlink completes a transfer that is still in flight. A peer may answer 0,
// "it was over", ahead of the RET_SUBMIT, or without one.
func (i *Importer) retUnlink(ret RetUnlink) {
	r := i.find(ret.Seq)
	if r == nil || r.unlink != ret.Seq {
		return
	}
	i.mu.Lock()
	u := i.forget(r)
	if ret.Status == 0 {
		ret.Status = int32(usb.StatusCancelled)
		i.expectLate(r)
	} else {
		delete(i.requests, r.seq)
		*r = request{}
		requestPool.Put(r)
	}
	i.mu.Unlock()
	u.Status, u.Actual, u.Errors = usb.Status(ret.Status), 0, 0
	u.Complete(u)
}

// expectLate keeps r for a RET_SUBMIT to come. mu is held.
func (i *Importer) expectLate(r *request) {
	if len(i.late) == maxLate {
		delete(i.requests, i.late[0].seq)
		i.late = slices.Delete(i.late, 0, 1)
	}
	i.late = append(i.late, r)
}

// skipLate reads what nobody waits for any more.
func (i *Importer) skipLate(r *request, ret RetSubmit) error {
	i.mu.Lock()
	delete(i.requests, r.seq)
	i.late = slices.DeleteFunc(i.late, func(l *request) bool { return l == r })
	i.mu.Unlock()
	n := 0
	if r.in {
		n = int(ret.Actual)
	}
	if r.packets > 0 {
		if ret.Packets < 0 || int(ret.Packets) > r.packets {
			return protocolError("%d packets of a transfer of %d", ret.Packets, r.packets)
		}
		n += int(ret.Packets) * IsoPacketSize
	}
	return i.discard(n)
}
