package emulate

import (
	"time"

	"github.com/usbns/usbns/usb"
)

// The endpoints of a [Loopback]. What is sent to an OUT endpoint comes back
// from the IN endpoint of the same number, packet by packet.
const (
	LoopbackBulkOut      = usb.Address(0x01)
	LoopbackBulkIn       = usb.Address(0x81)
	LoopbackInterruptOut = usb.Address(0x02)
	LoopbackInterruptIn  = usb.Address(0x82)
)

// The vendor requests of a [Loopback], all to the device.
const (
	// LoopbackScratch writes to, or reads from, a memory of
	// LoopbackScratchSize bytes, from offset wValue on.
	LoopbackScratch = 0x01
	// LoopbackHalt halts the endpoint wIndex.
	LoopbackHalt = 0x02
	// LoopbackDelay lets the endpoint wIndex take wValue milliseconds for every
	// transfer. For endpoint 0 it is LoopbackScratch that takes longer. A reset,
	// a new configuration and a new setting end all delays.
	LoopbackDelay = 0x03
)

// LoopbackScratchSize is the size of the scratch memory in bytes.
const LoopbackScratchSize = 4096

// loopbackBuffer is how much data waits between OUT and IN, in bytes.
const loopbackBuffer = 64 << 10

// A Loopback is a device for tests: it has an echo on bulk and on interrupt
// endpoints, and can be told to be slow or to stall. An OUT transfer waits
// while the echo's buffer is full.
//
// Its packets are a bus's packets: a transfer whose length is a multiple of the
// packet size has no end that an IN transfer could see, unless
// [usb.FlagZeroPacket] gives it one.
type Loopback struct {
	*Device
	scratch []byte
	lags    [32]lag
	pipes   []*packetPipe
}

// NewLoopback makes a loopback device, at high speed unless the options say
// otherwise.
func NewLoopback(o Options) (*Loopback, error) {
	speed, err := o.speed(usb.SpeedHigh, usb.SpeedFull)
	if err != nil {
		return nil, err
	}
	bulk := bulkPacket(speed)
	d := o.describe(productLoopback, "usbns loopback")
	d.Configurations = []Configuration{{
		SelfPowered: true,
		Interfaces: []Interface{{
			Class: classVendor,
			Name:  "echo",
			Endpoints: []Endpoint{
				{Address: LoopbackBulkOut, Type: usb.Bulk, MaxPacket: bulk},
				{Address: LoopbackBulkIn, Type: usb.Bulk, MaxPacket: bulk},
				{Address: LoopbackInterruptOut, Type: usb.Interrupt, MaxPacket: 64, Interval: interval(speed, 1)},
				{Address: LoopbackInterruptIn, Type: usb.Interrupt, MaxPacket: 64, Interval: interval(speed, 1)},
			},
		}},
	}}
	desc, err := d.Build(speed)
	if err != nil {
		return nil, err
	}
	l := &Loopback{}
	config := Config{
		Speed:       speed,
		Descriptors: desc,
		Control:     l.control,
		Endpoints:   make(map[usb.Address]Handler),
		Changed:     l.reset,
	}
	l.addEcho(config.Endpoints, LoopbackBulkOut, LoopbackBulkIn, bulk)
	l.addEcho(config.Endpoints, LoopbackInterruptOut, LoopbackInterruptIn, 64)
	l.Device, err = New(config)
	return l, err
}

// bulkPacket is the largest packet of a bulk endpoint: what each speed
// prescribes (USB 2.0, section 5.8.3; USB 3.2, section 9.6.6).
func bulkPacket(speed usb.Speed) uint16 {
	switch {
	case speed.Super():
		return 1024
	case speed == usb.SpeedHigh:
		return 512
	}
	return 64
}

func (l *Loopback) addEcho(handlers map[usb.Address]Handler, out, in usb.Address, maxPacket uint16) {
	p := &packetPipe{
		maxPacket: int(maxPacket),
		pushed:    func() { l.Wake(in) },
		popped:    func() { l.Wake(out) },
	}
	l.pipes = append(l.pipes, p)
	handlers[out] = func(u *usb.URB) bool { return l.due(u) && p.out(u) }
	handlers[in] = func(u *usb.URB) bool { return l.due(u) && p.in(u) }
}

// A lag is how long an endpoint is told to take, and what wakes it for the
// transfer at the head of its queue.
type lag struct {
	delay time.Duration
	timer *time.Timer
}

// due reports whether a transfer has waited for as long as its endpoint is told
// to take.
func (l *Loopback) due(u *usb.URB) bool {
	when, waits := u.Holder.(time.Time)
	if !waits {
		lag := &l.lags[slot(u.Endpoint)]
		if lag.delay == 0 {
			return true
		}
		when = time.Now().Add(lag.delay)
		u.Holder = when
		l.wakeLater(lag, u.Endpoint)
	}
	return !time.Now().Before(when)
}

// wakeLater has one timer for an endpoint, however many transfers come and are
// cancelled.
func (l *Loopback) wakeLater(g *lag, a usb.Address) {
	if g.timer == nil {
		g.timer = time.AfterFunc(g.delay, func() { l.Wake(a) })
	} else {
		g.timer.Reset(g.delay)
	}
}

func (l *Loopback) control(u *usb.URB) (done bool) {
	s := u.Setup
	switch {
	case s.RequestType&^usb.DirIn != usb.KindVendor|usb.ToDevice:
		return Stall(u)
	case s.Request == LoopbackScratch:
		return l.due(u) && l.transferScratch(u)
	case s.In() || s.Index > 0xff:
		return Stall(u)
	case s.Request == LoopbackHalt:
		e, ok := l.endpoint(s.Index)
		if !ok || e.Address.Number() == 0 {
			return Stall(u)
		}
		l.Halt(e.Address)
		return Accept(u)
	case s.Request == LoopbackDelay:
		l.lags[slot(usb.Address(s.Index))].delay = time.Duration(s.Value) * time.Millisecond
		return Accept(u)
	}
	return Stall(u)
}

func (l *Loopback) transferScratch(u *usb.URB) (done bool) {
	from, to := int(u.Setup.Value), int(u.Setup.Value)+int(u.Setup.Length)
	if to > LoopbackScratchSize {
		return Stall(u)
	}
	if l.scratch == nil {
		l.scratch = make([]byte, LoopbackScratchSize)
	}
	if u.Setup.In() {
		return Reply(u, l.scratch[from:to])
	}
	copy(l.scratch[from:to], u.Buffer)
	return Accept(u)
}

func (l *Loopback) reset() {
	for i := range l.lags {
		l.lags[i].delay = 0
	}
	for _, p := range l.pipes {
		p.clear()
	}
}

// packetPipe is a bounded queue of packets between an OUT and an IN endpoint.
// The bytes of all packets lie in one buffer, which is there only once there
// was a packet.
type packetPipe struct {
	maxPacket      int
	pushed, popped func()

	data        []byte // a slot of maxPacket bytes for each packet
	lengths     []int
	first, size int
}

func (p *packetPipe) clear() { p.first, p.size = 0, 0 }

func (p *packetPipe) slot(i int) []byte {
	i = (p.first + i) % len(p.lengths)
	return p.data[i*p.maxPacket:][:p.maxPacket]
}

// push takes a packet, if there is room.
func (p *packetPipe) push(b []byte) bool {
	if p.lengths == nil {
		p.data = make([]byte, loopbackBuffer)
		p.lengths = make([]int, loopbackBuffer/p.maxPacket)
	}
	if p.size == len(p.lengths) {
		return false
	}
	p.lengths[(p.first+p.size)%len(p.lengths)] = copy(p.slot(p.size), b)
	p.size++
	return true
}

// pop returns the next packet, valid until the next push.
func (p *packetPipe) pop() ([]byte, bool) {
	if p.size == 0 {
		return nil, false
	}
	b := p.slot(0)[:p.lengths[p.first]]
	p.first = (p.first + 1) % len(p.lengths)
	p.size--
	return b, true
}

// out cuts a transfer into packets, as far as there is room.
func (p *packetPipe) out(u *usb.URB) (done bool) {
	defer p.pushed()
	for {
		b := u.Buffer[u.Actual:]
		b = b[:min(len(b), p.maxPacket)]
		if !p.push(b) {
			return false
		}
		u.Actual += len(b)
		short := len(b) < p.maxPacket
		if u.Actual == len(u.Buffer) && (short || u.Flags&usb.FlagZeroPacket == 0) {
			return true
		}
	}
}

// in fills a transfer with packets until it is full or one is short.
func (p *packetPipe) in(u *usb.URB) (done bool) {
	defer p.popped()
	for {
		b, ok := p.pop()
		if !ok {
			return false
		}
		n := copy(u.Buffer[u.Actual:], b)
		u.Actual += n
		if n < len(b) {
			u.Status = usb.StatusOverflow
			return true
		}
		if n < p.maxPacket || u.Actual == len(u.Buffer) {
			return true
		}
	}
}
