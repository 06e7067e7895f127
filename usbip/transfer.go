package usbip

import (
	"github.com/usbns/usbns/usb"
)

// A shape is what follows a CMD_SUBMIT, and whom it is for.
type shape struct {
	address usb.Address
	ep      usb.Endpoint
	known   bool // ep exists in the current configuration
	packets int
}

// shape fails where it cannot be told how many bytes follow c: nothing behind
// it can be understood then.
func (s *session) shape(c *CmdSubmit) (shape, error) {
	switch {
	case c.DevID != s.devid:
		return shape{}, protocolError("device %#x in a request, not %#x", c.DevID, s.devid)
	case c.Direction > DirIn:
		return shape{}, protocolError("direction %d", c.Direction)
	case c.Length < 0:
		return shape{}, protocolError("transfer of %d bytes", c.Length)
	}
	sh := shape{address: usb.Address(c.Endpoint & 0x0f)}
	if c.Direction == DirIn {
		sh.address |= usb.DirIn
	}
	iso := false
	if c.Endpoint <= 15 {
		if sh.ep, sh.known = s.endpoints.Lookup(sh.address); sh.known {
			iso = sh.ep.Type == usb.Isochronous
		} else {
			iso = s.anywhereIsochronous(sh.address)
		}
	}
	if iso {
		if c.Packets < 0 || c.Packets > MaxIsoPackets {
			return shape{}, protocolError("%d isochronous packets, allowed are up to %d", c.Packets, MaxIsoPackets)
		}
		sh.packets = int(c.Packets)
	}
	return sh, nil
}

// anywhereIsochronous tells whether the peer may think of an endpoint as
// isochronous that does not exist at the moment.
func (s *session) anywhereIsochronous(a usb.Address) bool {
	for _, c := range s.dev.Descriptors().Configurations() {
		for _, i := range c.Interfaces {
			for _, alt := range i.Alternates {
				for _, ep := range alt.Endpoints {
					if ep.Address == a && ep.Type == usb.Isochronous {
						return true
					}
				}
			}
		}
	}
	return false
}

// reason tells with which status c must be refused, whatever the limits.
func (sh shape) reason(c *CmdSubmit) usb.Status {
	switch {
	case !sh.known:
		return usb.StatusStall
	case sh.ep.Type == usb.Isochronous && sh.packets == 0:
		return usb.StatusInvalid
	case sh.ep.Type == usb.Control:
		// Linux calls these bogus as well (usb_submit_urb). Without data the
		// direction does not matter.
		setup := usb.ParseSetup(c.Setup)
		if int(setup.Length) != int(c.Length) || c.Length > 0 && setup.In() != sh.address.In() {
			return usb.StatusInvalid
		}
	}
	return usb.StatusOK
}

// accept makes a transfer of c, or tells with which status it is refused.
func (s *session) accept(c *CmdSubmit, sh shape) (*transfer, usb.Status, error) {
	status := sh.reason(c)
	length := int(c.Length)
	size := charge(length, sh.packets)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.transfers[c.Seq] != nil:
		return nil, 0, protocolError("sequence number %d twice in flight", c.Seq)
	case status != usb.StatusOK:
		return nil, status, nil
	// With 32 bits, size can overflow where length is above the limit.
	case len(s.transfers) >= s.limits.URBs, length > s.limits.Bytes, s.bytes+s.queued+size > s.limits.Bytes:
		return nil, usb.StatusNoMemory, nil
	}
	t := transferPool.Get().(*transfer)
	t.s, t.seq, t.charge = s, c.Seq, size
	s.transfers[c.Seq] = t
	s.bytes += size
	t.fill(c, sh)
	return t, usb.StatusOK, nil
}

// passedFlags are those that mean the same on every machine.
const passedFlags = usb.FlagShortNotOK | usb.FlagIsoASAP | usb.FlagZeroPacket

func (t *transfer) fill(c *CmdSubmit, sh shape) {
	u := &t.urb
	u.Submitter, u.Complete = t, completed
	u.Endpoint, u.Type = sh.address, sh.ep.Type
	u.Setup = usb.Setup{}
	u.Flags = usb.Flags(c.Flags) & passedFlags
	u.StartFrame, u.Interval = c.StartFrame, c.Interval
	u.Status, u.Actual, u.Errors = usb.StatusOK, 0, 0
	if u.Type == usb.Control {
		u.Setup = usb.ParseSetup(c.Setup)
	}
	n := HeaderSize + int(c.Length)
	if c.Length > 0 || sh.packets > 0 {
		t.buf = getBuffer(n + sh.packets*IsoPacketSize)
		u.Buffer, u.MayKeep = t.buf.b[HeaderSize:n:n], true
	}
	if u.In() {
		u.Flags |= usb.FlagDirIn
		// What the device leaves out must not be another's data.
		clear(u.Buffer)
	}
}

// readPackets reads the packets of an isochronous transfer, and tells whether
// they fit it. If not, none is kept.
func (s *session) readPackets(t *transfer, n int) (bool, error) {
	t.packets = t.packets[:0]
	for range n {
		b, err := s.next(IsoPacketSize)
		if err != nil {
			return false, noEOF(err)
		}
		p := ParseIsoPacket(b)
		t.packets = append(t.packets, usb.IsoPacket{Offset: p.Offset, Length: p.Length})
	}
	t.urb.Packets = t.packets
	if checkPackets(&t.urb) != nil {
		t.urb.Packets = nil
		return false, nil
	}
	return true, nil
}

// remove ends t's time in flight. mu is held.
func (s *session) remove(t *transfer) {
	delete(s.transfers, t.seq)
	s.bytes -= t.charge
	if s.drained != nil && len(s.transfers) == 0 {
		close(s.drained)
	}
}

// put gives t back once nobody holds it. mu is held.
func (s *session) put(t *transfer) {
	if t.done = t.pinned > 0; !t.done {
		t.recycle()
	}
}

// abandon drops t, which the device has not seen.
func (s *session) abandon(t *transfer) {
	s.mu.Lock()
	s.remove(t)
	s.put(t)
	s.mu.Unlock()
}

// answer queues what the peer is to know of t: its outcome, and then that it
// was over when it was unlinked; or that it was cancelled and nothing else. mu
// is held.
func (s *session) answer(t *transfer) {
	if s.err != nil {
		return
	}
	cancelled := t.urb.Status == usb.StatusCancelled || t.urb.Status == usb.StatusUnlinked
	unlinked := usb.StatusOK
	if cancelled && len(t.unlinks) > 0 {
		unlinked = usb.StatusCancelled
	} else {
		s.retSubmit(t)
	}
	for _, seq := range t.unlinks {
		s.retUnlink(seq, unlinked)
	}
}

// retUnlink queues a RET_UNLINK. mu is held.
func (s *session) retUnlink(seq uint32, status usb.Status) {
	r := RetUnlink{Seq: seq, Status: int32(status)}
	r.Put(s.reserve(HeaderSize))
}

// retSubmit queues the RET_SUBMIT of t in one piece. mu is held.
func (s *session) retSubmit(t *transfer) {
	u := &t.urb
	r := RetSubmit{
		Seq: t.seq, Status: int32(u.Status), StartFrame: u.StartFrame,
		Packets: int32(len(u.Packets)), Errors: int32(u.Errors),
	}
	actual := min(max(u.Actual, 0), len(u.Buffer))
	if len(u.Packets) > 0 {
		actual = t.closeGaps()
	}
	r.Actual = int32(actual)
	if !u.In() {
		actual = 0 // of the data, nothing travels back
	}
	if actual == 0 && len(u.Packets) == 0 {
		r.Put(s.reserve(HeaderSize))
		return
	}
	b := t.buf
	t.buf = nil
	if u.Buffer == nil {
		b = getBuffer(HeaderSize + len(u.Packets)*IsoPacketSize)
	}
	r.Put(b.b)
	b.hi = HeaderSize + actual
	for _, p := range u.Packets {
		PutIsoPacket(b.b[b.hi:], p)
		b.hi += IsoPacketSize
	}
	s.send(b)
}

// closeGaps makes the packets of an isochronous transfer say what the device
// could have moved, moves the data of an IN transfer together, and returns how
// much it is.
func (t *transfer) closeGaps() int {
	u := &t.urb
	sum := 0
	if u.Buffer == nil { // the device keeps it, and nothing has moved
		for i := range u.Packets {
			u.Packets[i].Actual = 0
		}
		return 0
	}
	for i := range u.Packets {
		p := &u.Packets[i]
		p.Actual = min(max(p.Actual, 0), p.Length)
		sum += p.Actual
	}
	if u.In() {
		gather(u.Buffer, u.Packets)
	}
	return sum
}

// refuse answers a request that was not accepted, and reads what belongs to it.
// Linux takes number, offsets and lengths of the packets from the answer, so
// they are sent back.
func (s *session) refuse(c *CmdSubmit, sh shape, status usb.Status) error {
	if c.Direction == DirOut {
		if err := s.discard(int(c.Length)); err != nil {
			return err
		}
	}
	b := getBuffer(HeaderSize + sh.packets*IsoPacketSize)
	b.hi = HeaderSize + sh.packets*IsoPacketSize
	packets := b.b[HeaderSize:b.hi]
	if err := noEOF(s.readFull(packets)); err != nil {
		b.free()
		return err
	}
	for ; len(packets) > 0; packets = packets[IsoPacketSize:] {
		p := ParseIsoPacket(packets)
		p.Actual, p.Status = 0, status
		PutIsoPacket(packets, p)
	}
	r := RetSubmit{Seq: c.Seq, Status: int32(status), Packets: int32(sh.packets)}
	r.Put(b.b)
	s.mu.Lock()
	s.send(b)
	s.flush()
	return nil
}
