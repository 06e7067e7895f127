package usbip

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/usbns/usbns/usb"
)

// ImportOptions are the choices of an importer. Nil, like fields that are
// zero, means the defaults.
type ImportOptions struct {
	// Descriptors, if not nil, are those of the device, known from elsewhere:
	// it is not asked for them.
	Descriptors *usb.Descriptors
	// UnlinkTimeout is how long the peer may take to answer a cancellation
	// before the connection is given up. Default: 5 s.
	UnlinkTimeout time.Duration
	Limits        Limits
}

// An Importer is a remote device. It implements [usb.Device]: transfers are
// submitted to the exporter at the other end of its connection, without
// blocking and without an allocation for each.
//
// It works until the connection ends, [Importer.Close] is called, or the peer
// violates the protocol; Err tells then which of these it was.
type Importer struct {
	link
	devid         uint32
	speed         usb.Speed
	unlinkTimeout time.Duration
	descriptors   *usb.Descriptors
	endpoints     *usb.Endpoints // nil until descriptors are known
	gone          chan struct{}

	echoed int // of the reader: see skipEcho

	// Guarded by link.mu.
	seq      uint32
	requests map[uint32]*request // by the seqnum of their submit, and of their unlink
	inFlight int
	bytes    int
	late     []*request // whose RET_SUBMIT may follow a RET_UNLINK of 0

	resetting chan struct{} // holds a token while a reset runs
}

// A request is a transfer on the wire. Its urb is nil when it has completed
// ahead of its RET_SUBMIT.
type request struct {
	imp         *Importer
	urb         *usb.URB
	seq, unlink uint32 // unlink is 0 until it is sent
	size        int    // of the buffer
	packets     int
	in          bool
	data        buffer      // borrowed from urb until it is written
	timer       *time.Timer // runs from unlink to completion
	barrier     *barrier    // of the reset that waits for it
}

// A barrier waits for the requests that were in flight when a reset began.
type barrier struct {
	waiting int
	done    chan struct{}
}

var _ interface {
	usb.Device
	usb.Batcher
} = (*Importer)(nil)

var requestPool = sync.Pool{New: func() any { return new(request) }}

// NewImporter makes a usb.Device of a connection past IMPORT: one on which
// [RequestImport] succeeded, here or in another process. Unless opts brings
// them it reads the device's descriptors, in the time ctx gives, or else in
// DefaultEnumerationTimeout.
//
// conn belongs to the Importer from here on, and is closed if NewImporter
// fails. Only a *net.TCPConn or *net.UnixConn has the full speed. Errors are of
// type [*OpError].
func NewImporter(ctx context.Context, conn net.Conn, devid uint32, speed usb.Speed, opts *ImportOptions) (*Importer, error) {
	if !speed.Valid() {
		conn.Close()
		return nil, opError("import", conn, "", protocolError("device of %v speed", speed))
	}
	if opts == nil {
		opts = &ImportOptions{}
	}
	i := &Importer{
		devid:         devid,
		speed:         speed,
		unlinkTimeout: orDefault(opts.UnlinkTimeout, DefaultUnlinkTimeout),
		gone:          make(chan struct{}),
		requests:      make(map[uint32]*request),
		resetting:     make(chan struct{}, 1),
	}
	i.init(conn, opts.Limits)
	go i.read()
	i.descriptors = opts.Descriptors
	if i.descriptors == nil {
		if err := i.enumerate(ctx); err != nil {
			i.Close()
			return nil, opError("import", conn, "", err)
		}
	}
	i.endpoints = usb.NewEndpoints(i.descriptors)
	return i, nil
}

// enumerate ends with ctx even where the peer does not answer cancellations.
func (i *Importer) enumerate(ctx context.Context) error {
	ctx, cancel := withTimeout(ctx, DefaultEnumerationTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { i.fail(context.Cause(ctx)) })
	var err error
	i.descriptors, err = usb.ReadDescriptors(ctx, i)
	if !stop() {
		return context.Cause(ctx)
	}
	if cause := i.Err(); err != nil && cause != nil {
		return cause
	}
	return err
}

// Speed is the speed the exporter told.
func (i *Importer) Speed() usb.Speed { return i.speed }

// Descriptors returns what the device said of itself when it was imported.
func (i *Importer) Descriptors() *usb.Descriptors { return i.descriptors }

// Endpoint returns the endpoint at an address in the configuration and settings
// that were chosen through this Importer, and false if there is none.
func (i *Importer) Endpoint(a usb.Address) (usb.Endpoint, bool) { return i.endpoints.Lookup(a) }

// Gone is closed when the connection has ended and the last URB completed.
func (i *Importer) Gone() <-chan struct{} { return i.gone }

// Err tells why the device is gone, and is nil as long as it is not. After
// Close it is [net.ErrClosed].
func (i *Importer) Err() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.err
}

// Close ends the connection, which frees the device at the exporter, and waits
// for the URBs in flight to complete. It must not be called from a Complete.
func (i *Importer) Close() error {
	i.fail(net.ErrClosed)
	<-i.gone
	return nil
}

// Submit implements [usb.Device]. Neither the data nor the answer of u is
// copied more than once, and OUT data of more than 4 KiB not at all.
func (i *Importer) Submit(u *usb.URB) error {
	if err := i.check(u); err != nil {
		return err
	}
	// Linux wants control transfers without data to go OUT.
	in := u.In() && (u.Type != usb.Control || len(u.Buffer) > 0)
	charge := charge(len(u.Buffer), len(u.Packets))
	i.mu.Lock()
	switch {
	case i.err != nil:
		i.mu.Unlock()
		return fmt.Errorf("%w: %w", usb.ErrGone, i.err)
	case i.inFlight >= i.limits.URBs || i.bytes+charge > i.limits.Bytes:
		i.mu.Unlock()
		return usb.ErrTooMany
	}
	r := requestPool.Get().(*request)
	*r = request{imp: i, urb: u, seq: i.nextSeq(), size: len(u.Buffer), packets: len(u.Packets), in: in}
	u.Holder = r
	i.requests[r.seq] = r
	i.inFlight++
	i.bytes += charge
	i.sendSubmit(r, u)
	i.flush()
	return nil
}

// charge is what a transfer counts against Limits.Bytes.
func charge(size, packets int) int { return HeaderSize + size + packets*IsoPacketSize }

// check refuses what the wire cannot carry, and what would make the exporter
// end the connection.
func (i *Importer) check(u *usb.URB) error {
	if u.Type == usb.Control && u.Endpoint.Number() == 0 {
		if len(u.Buffer) != int(u.Setup.Length) || u.Packets != nil {
			return fmt.Errorf("%w: a control transfer of length %d with %d bytes", usb.ErrInvalid, u.Setup.Length, len(u.Buffer))
		}
		return nil
	}
	if i.endpoints == nil {
		return usb.ErrNoEndpoint
	}
	ep, ok := i.endpoints.Lookup(u.Endpoint)
	if !ok {
		return usb.ErrNoEndpoint
	}
	if (ep.Type == usb.Isochronous) != (u.Type == usb.Isochronous) || (ep.Type == usb.Control) != (u.Type == usb.Control) {
		return fmt.Errorf("%w: a %v transfer to a %v endpoint", usb.ErrInvalid, u.Type, ep.Type)
	}
	return checkPackets(u)
}

// nextSeq never gives out 0, which stands for "none".
func (i *Importer) nextSeq() uint32 {
	for {
		i.seq++
		if _, used := i.requests[i.seq]; !used && i.seq != 0 {
			return i.seq
		}
	}
}

// sendSubmit queues the CMD_SUBMIT. mu is held.
func (i *Importer) sendSubmit(r *request, u *usb.URB) {
	c := CmdSubmit{
		Seq: r.seq, DevID: i.devid, Endpoint: uint32(u.Endpoint.Number()),
		Flags: uint32(u.Flags), Length: int32(len(u.Buffer)),
		StartFrame: u.StartFrame, Packets: int32(len(u.Packets)), Interval: u.Interval,
	}
	if u.Type == usb.Control {
		c.Setup = u.Setup.Bytes()
	}
	data := u.Buffer
	if r.in {
		c.Direction, c.Flags, data = DirIn, c.Flags|uint32(usb.FlagDirIn), nil
	}
	c.Put(i.reserve(HeaderSize))
	if len(data) > copyMax {
		i.enqueue(r.data.borrow(data))
	} else {
		copy(i.reserve(len(data)), data)
	}
	for _, p := range u.Packets {
		PutIsoPacket(i.reserve(IsoPacketSize), usb.IsoPacket{Offset: p.Offset, Length: p.Length})
	}
}

// unsent tells that data of r still waits to be written, so that its URB
// cannot complete. mu is held.
func (r *request) unsent() bool { return r.data.b != nil }

// Cancel implements [usb.Device]. If the exporter does not answer within the
// UnlinkTimeout the connection ends, and u completes with it.
func (i *Importer) Cancel(u *usb.URB) {
	i.mu.Lock()
	if r, ok := u.Holder.(*request); ok && r.imp == i {
		i.unlink(r)
	}
	i.flush()
}

// unlink queues the CMD_UNLINK for r. mu is held.
func (i *Importer) unlink(r *request) {
	if r.unlink != 0 || i.err != nil {
		return
	}
	r.unlink = i.nextSeq()
	i.requests[r.unlink] = r
	c := CmdUnlink{Seq: r.unlink, DevID: i.devid, Unlink: r.seq}
	c.Put(i.reserve(HeaderSize))
	seq := r.unlink
	r.timer = time.AfterFunc(i.unlinkTimeout, func() { i.unlinkExpired(seq) })
}

func (i *Importer) unlinkExpired(seq uint32) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.requests[seq] != nil {
		i.failLocked(fmt.Errorf("%w: no answer to a cancellation within %v", os.ErrDeadlineExceeded, i.unlinkTimeout))
	}
}

// forget ends what is known of r's transfer, and returns the URB to complete,
// nil if that has been. mu is held.
func (i *Importer) forget(r *request) *usb.URB {
	u := r.urb
	if u == nil {
		return nil
	}
	if r.unlink != 0 {
		r.timer.Stop()
		delete(i.requests, r.unlink)
	}
	r.urb, u.Holder = nil, nil
	i.inFlight--
	i.bytes -= charge(r.size, r.packets)
	if b := r.barrier; b != nil {
		if b.waiting--; b.waiting == 0 {
			close(b.done)
		}
		r.barrier = nil
	}
	return u
}

// Hold implements [usb.Batcher]: requests leave together, at Release.
func (i *Importer) Hold() { i.hold() }

// Release implements [usb.Batcher].
func (i *Importer) Release() { i.release() }

// Watch implements [usb.Batcher]: answers that came together complete together.
func (i *Importer) Watch(hold, release func()) (stop func()) {
	return i.watch(&batch{hold, release})
}

// Reset implements [usb.Device]. Transfers in flight are cancelled; then the
// exporter is asked to reset the device.
func (i *Importer) Reset(ctx context.Context) error {
	select {
	case i.resetting <- struct{}{}:
		defer func() { <-i.resetting }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := i.cancelAll(ctx); err != nil {
		return err
	}
	_, err := usb.ControlTransfer(ctx, i, usb.PortReset(), nil)
	// Until late in 2024 Linux reset the device and then passed the request
	// on to it as well, which stalls.
	if err != nil && !errors.Is(err, usb.StatusStall.Err()) {
		return err
	}
	i.endpoints.Reset()
	return nil
}

// cancelAll cancels the transfers in flight and waits for them to complete.
func (i *Importer) cancelAll(ctx context.Context) error {
	b := &barrier{done: make(chan struct{})}
	i.mu.Lock()
	all := slices.Collect(maps.Values(i.requests))
	for _, r := range all {
		if r.urb != nil && r.barrier != b {
			r.barrier = b
			b.waiting++
			i.unlink(r)
		}
	}
	if b.waiting == 0 {
		close(b.done)
	}
	i.flush()
	select {
	case <-b.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
