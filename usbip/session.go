package usbip

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/usbns/usbns/usb"
)

// ServeOptions are the choices of one connection in its URB phase. Nil, like
// fields that are zero, means the defaults.
type ServeOptions struct {
	Limits Limits
	// ResetTimeout bounds the reset of the device, by the peer and at the end
	// of the connection. Default: 5 s.
	ResetTimeout time.Duration

	limited func(error) // told once, when a transfer was refused at a limit
}

// ServeDevice gives dev to the importer at the other end of conn, which is past
// IMPORT: an exporter's connection, or one end of a socketpair whose other end
// was given to the kernel. It returns when that end closes the connection, the
// device is gone, ctx ends, or the peer breaks a rule; nil in the first case,
// answers unread or not.
//
// conn is closed then, the transfers in flight have been cancelled and have
// completed, and the device has been reset, so that the next importer finds it
// as new. dev is not closed. A reset that failed is part of the error, as a
// [*ResetError].
//
// devid must be that of the IMPORT. Only a *net.TCPConn or *net.UnixConn has
// the full speed.
func ServeDevice(ctx context.Context, conn net.Conn, devid uint32, dev usb.Device, opts *ServeOptions) error {
	if opts == nil {
		opts = &ServeOptions{}
	}
	s := &session{
		dev:          dev,
		devid:        devid,
		resetTimeout: orDefault(opts.ResetTimeout, DefaultResetTimeout),
		limited:      opts.limited,
		endpoints:    usb.NewEndpoints(dev.Descriptors()),
		transfers:    make(map[uint32]*transfer),
	}
	s.init(conn, opts.Limits)
	if err := s.serve(ctx); err != nil {
		return opError("serve", conn, "", err)
	}
	return nil
}

// A ResetError tells that a device could not be reset after an importer had
// left it: what that one did to it may still be in effect.
type ResetError struct{ Err error }

func (e *ResetError) Error() string {
	return "reset the device for the next importer: " + e.Err.Error()
}

// Unwrap returns e.Err.
func (e *ResetError) Unwrap() error { return e.Err }

// A session serves one device on one connection.
type session struct {
	link
	dev          usb.Device
	devid        uint32
	resetTimeout time.Duration
	limited      func(error) // of the reader; nil once it was called
	early        early       // of the reader
	endpoints    *usb.Endpoints
	resets       sync.WaitGroup

	// Guarded by link.mu.
	transfers map[uint32]*transfer
	bytes     int
	resetting context.CancelFunc // of the reset the peer asked for
	drained   chan struct{}      // not nil once the session ends; closed with the last transfer
}

// A transfer is a URB of the peer in flight at the device.
type transfer struct {
	s       *session
	seq     uint32
	urb     usb.URB
	buf     *buffer // header, data, packets; nil when no data belongs to it
	charge  int
	unlinks []uint32 // seqnums of the UNLINKs that wait for it
	pinned  int      // calls of Device.Cancel under way
	done    bool     // completed while pinned
	packets []usb.IsoPacket
}

// maxUnlinks is how often a peer may unlink one transfer. Once is normal.
const maxUnlinks = 8

var transferPool = sync.Pool{New: func() any { return new(transfer) }}

func (t *transfer) recycle() {
	if t.buf != nil && t.urb.Buffer != nil { // nil: the device keeps it
		t.buf.free()
	}
	t.s, t.buf, t.done, t.unlinks = nil, nil, false, t.unlinks[:0]
	t.urb.Buffer, t.urb.Packets, t.urb.Holder = nil, nil, nil
	transferPool.Put(t)
}

func (s *session) serve(ctx context.Context) error {
	ended := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-ctx.Done():
			s.fail(context.Cause(ctx))
		case <-s.dev.Gone():
			s.mu.Lock()
			s.held = 0
			s.flush() // the last answers, if the socket takes them
			s.fail(usb.ErrGone)
		case <-ended:
		}
	})
	if d, ok := s.dev.(usb.Batcher); ok {
		s.watch(&batch{d.Hold, d.Release})
		defer d.Watch(s.hold, s.release)()
	}
	for {
		if err := s.readOne(); err != nil {
			s.fail(err)
			break
		}
	}
	s.pause()
	close(ended)
	watch.Wait()
	reset := s.end()
	switch {
	case closedByPeer(s.err):
		return reset
	case reset != nil:
		return fmt.Errorf("%w; %w", s.err, reset)
	}
	return s.err
}

// closedByPeer reports whether the peer has closed the connection: between
// messages, or with answers on their way to it.
func closedByPeer(err error) bool {
	return err == io.EOF || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

// end takes the device back.
func (s *session) end() error {
	s.mu.Lock()
	s.drained = make(chan struct{})
	if len(s.transfers) == 0 {
		close(s.drained)
	}
	all := make([]*transfer, 0, len(s.transfers))
	for _, t := range s.transfers {
		t.pinned++
		all = append(all, t)
	}
	if s.resetting != nil {
		s.resetting()
	}
	s.mu.Unlock()
	for _, t := range all {
		s.cancel(t)
	}
	<-s.drained
	s.resets.Wait()
	s.active.Wait()
	s.dropInput()
	return s.resetDevice()
}

func (s *session) resetDevice() error {
	ctx, cancel := context.WithTimeout(context.Background(), s.resetTimeout)
	defer cancel()
	err := s.dev.Reset(ctx)
	select {
	case <-s.dev.Gone():
		return nil // and there is no next importer
	default:
	}
	if err != nil {
		return &ResetError{err}
	}
	return nil
}

func (s *session) readOne() error {
	b, err := s.next(HeaderSize)
	if err != nil {
		return err
	}
	switch c := PeekCommand(b); c {
	case CommandSubmit:
		return s.cmdSubmit(ParseCmdSubmit(b))
	case CommandUnlink:
		return s.cmdUnlink(ParseCmdUnlink(b))
	default:
		return protocolError("command %d in a request", c)
	}
}

// cmdSubmit reads what belongs to c, whether it is accepted or not: the UNLINK
// that frees what is missing may be behind it.
func (s *session) cmdSubmit(c CmdSubmit) error {
	shape, err := s.shape(&c)
	if err != nil {
		return err
	}
	if s.overtaken(c.Seq) {
		return s.skip(&c, shape)
	}
	t, status, err := s.accept(&c, shape)
	if err != nil {
		return err
	}
	if status == usb.StatusNoMemory && s.limited != nil {
		s.limited(fmt.Errorf("a transfer of %d bytes was refused: at most %d may be in flight, of %d bytes in all", c.Length, s.limits.URBs, s.limits.Bytes))
		s.limited = nil
	}
	if status != usb.StatusOK {
		return s.refuse(&c, shape, status)
	}
	if !t.urb.In() {
		if err := noEOF(s.readFull(t.urb.Buffer)); err != nil {
			s.abandon(t)
			return err
		}
	}
	if shape.packets > 0 {
		ok, err := s.readPackets(t, shape.packets)
		if err != nil {
			s.abandon(t)
			return err
		}
		if !ok {
			s.finish(t, usb.StatusInvalid)
			return nil
		}
	}
	s.submit(t)
	return nil
}

func (s *session) submit(t *transfer) {
	if t.urb.Type == usb.Control && isPortReset(t.urb.Setup) {
		s.startReset(t)
		return
	}
	if err := s.dev.Submit(&t.urb); err != nil {
		s.finish(t, submitStatus(err))
	}
}

func submitStatus(err error) usb.Status {
	switch {
	case errors.Is(err, usb.ErrGone):
		return usb.StatusNoDevice
	case errors.Is(err, usb.ErrNoEndpoint):
		return usb.StatusStall
	case errors.Is(err, usb.ErrTooMany):
		return usb.StatusNoMemory
	}
	return usb.StatusInvalid
}

// completed is the Complete of every URB: it queues the answer and writes it.
func completed(u *usb.URB) {
	t := u.Submitter.(*transfer)
	t.s.finish(t, u.Status)
}

// finish answers t, which the device has completed or did not take.
func (s *session) finish(t *transfer, status usb.Status) {
	t.urb.Status = status
	if t.urb.Type == usb.Control {
		s.endpoints.Observe(t.urb.Setup, status)
	}
	s.mu.Lock()
	s.remove(t)
	s.answer(t)
	s.put(t)
	s.flush()
}

// cmdUnlink answers at once if the transfer is over, whose answer is queued by
// then. Otherwise the transfer's completion does.
func (s *session) cmdUnlink(c CmdUnlink) error {
	if c.DevID != s.devid {
		return protocolError("device %#x in a request, not %#x", c.DevID, s.devid)
	}
	s.mu.Lock()
	t := s.transfers[c.Unlink]
	if t == nil {
		if over := s.early.hold(c); over != nil {
			s.retUnlink(over.Seq, usb.StatusOK)
		}
		s.flush()
		return nil
	}
	if len(t.unlinks) == maxUnlinks {
		s.mu.Unlock()
		return protocolError("transfer %d unlinked more than %d times", c.Unlink, maxUnlinks)
	}
	t.unlinks = append(t.unlinks, c.Seq)
	t.pinned++
	s.mu.Unlock()
	s.cancel(t)
	return nil
}

// cancel cancels t, which the caller has pinned: without that it could be
// another transfer by the time the device sees it.
func (s *session) cancel(t *transfer) {
	s.dev.Cancel(&t.urb)
	s.mu.Lock()
	t.pinned--
	if t.done && t.pinned == 0 {
		t.recycle()
	}
	s.mu.Unlock()
}

// startReset resets the device for t, a SET_FEATURE(PORT_RESET), while reading
// goes on.
func (s *session) startReset(t *transfer) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), s.resetTimeout,
		fmt.Errorf("device did not reset within %v", s.resetTimeout))
	s.mu.Lock()
	busy := s.resetting != nil
	if !busy {
		s.resetting = cancel
	}
	s.mu.Unlock()
	if busy {
		cancel()
		s.finish(t, usb.StatusNoMemory)
		return
	}
	s.resets.Go(func() {
		err := s.dev.Reset(ctx)
		cancel()
		status := usb.StatusOK
		if err == nil {
			s.endpoints.Reset()
		} else {
			status = usb.StatusIO
		}
		s.mu.Lock()
		s.resetting = nil
		s.mu.Unlock()
		s.finish(t, status)
	})
}

func isPortReset(s usb.Setup) bool {
	r := usb.PortReset()
	return s.Is(r.RequestType, r.Request) && s.Value == r.Value
}
