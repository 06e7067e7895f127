package usbip

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/usbns/usbns/usb"
)

// An Exporter offers devices to importers. The zero value is ready; the
// exported fields must be set before Serve.
type Exporter struct {
	// Serve limits each connection in its URB phase.
	ServeOptions ServeOptions
	// HandshakeTimeout bounds the time from accepting a connection to its
	// request. Default: 10 s.
	HandshakeTimeout time.Duration
	// Handshakes is how many connections may be about to make their request.
	// When one more comes the oldest of them is closed: an honest one takes no
	// longer than a round trip. Default: 64.
	//
	// Together with the number of devices it bounds the number of connections.
	Handshakes int
	// OnEvent, if not nil, is told what importers do. It is called by several
	// goroutines and must not block.
	OnEvent func(Event)

	mu      sync.Mutex
	exports []*export
	number  uint32 // of the next device
	pending []pending
}

// An Event is what happened to a connection of an Exporter.
type Event struct {
	Kind  EventKind
	Peer  net.Addr
	BusID string // "" where none was asked for
	Err   error  // why, for all but Imported
}

// A pending connection is one that is about to make its request.
type pending struct {
	conn net.Conn
	end  context.CancelCauseFunc
}

// EventKind tells Events apart.
type EventKind uint8

// The events.
const (
	Refused  EventKind = iota // the request failed
	Imported                  // the importer has the device
	Released                  // the device is free again
	Limited                   // a transfer was refused at a limit, the first one of this import
)

// An export is one device of an Exporter.
type export struct {
	busid  string
	dev    usb.Device
	bus    uint32
	number uint32

	// Guarded by Exporter.mu.
	user  context.CancelCauseFunc // ends the session that uses it, nil while free
	freed chan struct{}           // closed when that has ended
	dirty bool                    // the last reset failed
}

// Add offers dev as busid. The exporter does not close it; a device that is
// gone is offered no longer.
func (e *Exporter) Add(busid string, dev usb.Device) error {
	if err := CheckBusID(busid); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if x := e.find(busid); x != nil {
		return fmt.Errorf("busid %s is exported already", busid)
	}
	// As many devices as a real bus has.
	x := &export{busid: busid, dev: dev, bus: 1 + e.number/127, number: 1 + e.number%127}
	e.number++
	e.exports = append(e.exports, x)
	return nil
}

// Remove withdraws a device. An importer that uses it loses it; Remove returns
// when nothing touches the device any more, or when ctx ends.
func (e *Exporter) Remove(ctx context.Context, busid string) error {
	e.mu.Lock()
	x := e.find(busid)
	if x == nil {
		e.mu.Unlock()
		return fmt.Errorf("busid %s is not exported", busid)
	}
	e.exports = slices.DeleteFunc(e.exports, func(o *export) bool { return o == x })
	var freed chan struct{}
	if x.user != nil {
		freed = x.freed
		x.user(errWithdrawn)
	}
	e.mu.Unlock()
	if freed == nil {
		return nil
	}
	select {
	case <-freed:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// present returns the devices that are not gone. mu is held.
func (e *Exporter) present() []*export {
	e.exports = slices.DeleteFunc(e.exports, func(x *export) bool { return isGone(x.dev) })
	return e.exports
}

// find returns nil where there is none. mu is held.
func (e *Exporter) find(busid string) *export {
	for _, x := range e.present() {
		if x.busid == busid {
			return x
		}
	}
	return nil
}

func isGone(dev usb.Device) bool {
	select {
	case <-dev.Gone():
		return true
	default:
		return false
	}
}

// Serve accepts connections until ctx ends or l fails, and returns when all of
// them are done. It closes l. Several calls may run at once.
func (e *Exporter) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel()
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { l.Close(); close(closed) })
	defer func() {
		if stop() {
			l.Close()
		} else {
			<-closed // Accept may have returned before
		}
	}()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return context.Cause(ctx)
		}
		if errors.Is(err, net.ErrClosed) || err != nil && !temporary(err) {
			return &OpError{Op: "export", Err: err}
		}
		if err != nil {
			if err := sleep(ctx, acceptPause); err != nil {
				return err
			}
			continue
		}
		hctx := e.begin(ctx, conn)
		conns.Go(func() { e.serveConn(ctx, hctx, conn) })
	}
}

// acceptPause lets connections end before the next is tried, when the process
// is out of descriptors.
const acceptPause = 50 * time.Millisecond

func temporary(err error) bool {
	ne, ok := errors.AsType[interface {
		error
		Temporary() bool
	}](err)
	return ok && ne.Temporary()
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// begin counts conn among those in handshake, and closes the oldest where they
// become too many. The context ends with conn's right to be one of them.
func (e *Exporter) begin(ctx context.Context, conn net.Conn) context.Context {
	ctx, end := context.WithCancelCause(ctx)
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.pending) >= orDefault(e.Handshakes, DefaultHandshakes) {
		e.pending[0].end(errCrowded)
		e.pending[0].conn.Close()
		e.pending = slices.Delete(e.pending, 0, 1)
	}
	e.pending = append(e.pending, pending{conn, end})
	return ctx
}

func (e *Exporter) finish(conn net.Conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pending = slices.DeleteFunc(e.pending, func(p pending) bool {
		if p.conn == conn {
			p.end(nil)
		}
		return p.conn == conn
	})
}

func (e *Exporter) event(kind EventKind, conn net.Conn, busid string, err error) {
	if e.OnEvent != nil {
		e.OnEvent(Event{kind, conn.RemoteAddr(), busid, err})
	}
}

// serveConn answers the one request of a connection, as long as hctx lasts.
func (e *Exporter) serveConn(ctx, hctx context.Context, conn net.Conn) {
	defer conn.Close()
	x, sctx, err := e.handshake(ctx, hctx, conn)
	e.finish(conn)
	switch {
	case x != nil && err == nil:
		e.event(Imported, conn, x.busid, nil)
		opts := e.ServeOptions
		opts.limited = func(err error) { e.event(Limited, conn, x.busid, err) }
		err = ServeDevice(sctx, conn, x.devID(), x.dev, &opts)
		e.release(x, err)
		e.event(Released, conn, x.busid, unwrapOp(err))
	case x != nil:
		e.release(x, nil)
		e.event(Refused, conn, x.busid, unwrapOp(err))
	case err != nil:
		e.event(Refused, conn, busidOf(err), unwrapOp(err))
	}
}

func busidOf(err error) string {
	if e, ok := errors.AsType[*OpError](err); ok {
		return e.BusID
	}
	return ""
}

// handshake reads the request and answers it. If that was an IMPORT which could
// be granted it returns the export, which the connection now owns, and the
// context that ends with the right to it.
func (e *Exporter) handshake(ctx, hctx context.Context, conn net.Conn) (x *export, sctx context.Context, err error) {
	hctx, cancel := context.WithTimeoutCause(hctx, orDefault(e.HandshakeTimeout, DefaultHandshakeTimeout), errNoRequest)
	defer cancel()
	err = handshake(hctx, conn, 0, func() error {
		var b [OpHeaderSize + BusIDSize]byte
		if _, err := io.ReadFull(conn, b[:OpHeaderSize]); err != nil {
			return explainEOF(err)
		}
		h := ParseOpHeader(b[:])
		if h.Version != Version {
			return protocolError("version %#04x in its request, not %#04x", h.Version, Version)
		}
		switch h.Code {
		case OpReqDevlist:
			_, err := conn.Write(e.devlist())
			return err
		case OpReqImport:
			if _, err := io.ReadFull(conn, b[OpHeaderSize:]); err != nil {
				return noEOF(err)
			}
			busid := cutNUL(b[OpHeaderSize:])
			var reply []byte
			x, sctx, reply, err = e.claim(ctx, hctx, busid)
			if _, werr := conn.Write(reply); werr != nil {
				err = werr
			}
			if err != nil && CheckBusID(busid) == nil {
				err = opError("export", conn, busid, err)
			}
			return err
		}
		return protocolError("code %#04x in its request", h.Code)
	})
	return x, sctx, err
}

var (
	errNoRequest = errors.New("no request in time")
	errCrowded   = errors.New("no request yet, and too many others wait to make theirs")
	errWithdrawn = errors.New("device was withdrawn")
)

// devlist is the reply with all devices that are free: Linux leaves out those
// in use as well.
func (e *Exporter) devlist() []byte {
	e.mu.Lock()
	var free []*export
	for _, x := range e.present() {
		if x.user == nil {
			free = append(free, x)
		}
	}
	e.mu.Unlock()
	b := OpHeader{Version: Version, Code: OpRepDevlist}.Append(nil)
	n := uint32(len(free))
	b = append(b, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	for _, x := range free {
		info := x.info()
		b = info.AppendInterfaces(info.Append(b))
	}
	return b
}

// claim takes a device for an importer, and makes the reply to its IMPORT. A
// device that could not be reset before gets another chance, within hctx.
func (e *Exporter) claim(ctx, hctx context.Context, busid string) (*export, context.Context, []byte, error) {
	h := OpHeader{Version: Version, Code: OpRepImport}
	x, sctx, err := e.take(ctx, busid)
	if bad := CheckBusID(busid); bad != nil {
		err = fmt.Errorf("%w: %w", err, bad)
	}
	if err == nil && x.dirty {
		if failed := x.dev.Reset(hctx); failed != nil {
			e.release(x, &ResetError{failed})
			err = fmt.Errorf("%w: %w", OpDevError, failed)
		}
	}
	if err != nil {
		h.Status, _ = errors.AsType[OpStatus](err)
		return nil, nil, h.Append(nil), err
	}
	info := x.info()
	return x, sctx, info.Append(h.Append(nil)), nil
}

func (e *Exporter) take(ctx context.Context, busid string) (*export, context.Context, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	x := e.find(busid)
	switch {
	case x == nil:
		return nil, nil, OpNoDevice
	case x.user != nil:
		return nil, nil, OpBusy
	}
	ctx, x.user = context.WithCancelCause(ctx)
	x.freed = make(chan struct{})
	return x, ctx, nil
}

// release makes x free again, as its session left it.
func (e *Exporter) release(x *export, ended error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	x.user(nil)
	x.user = nil
	_, x.dirty = errors.AsType[*ResetError](ended)
	close(x.freed)
}

func (x *export) devID() uint32 { return x.bus<<16 | x.number }

// info describes the device. Its first configuration stands for the current
// one: the device is not configured while it is free.
func (x *export) info() DeviceInfo {
	d := x.dev.Descriptors().Device()
	c := x.dev.Descriptors().Configurations()[0]
	info := DeviceInfo{
		Path: "/usbip/" + x.busid, BusID: x.busid,
		BusNum: x.bus, DevNum: x.number, Speed: x.dev.Speed(),
		Vendor: d.Vendor, Product: d.Product, Version: d.Version,
		Class: d.Class, SubClass: d.SubClass, Protocol: d.Protocol,
		NumConfigurations: d.NumConfigurations, Configuration: c.Value,
	}
	for _, i := range c.Interfaces {
		a := i.Alternates[0]
		info.Interfaces = append(info.Interfaces, InterfaceInfo{a.Class, a.SubClass, a.Protocol})
	}
	return info
}
