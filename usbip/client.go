package usbip

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// MaxDevices is how many devices List accepts of one exporter.
const MaxDevices = 16384

// Dial connects to an exporter over TCP, at an address as for SplitAddr.
func Dial(ctx context.Context, addr string) (net.Conn, error) {
	addr = net.JoinHostPort(SplitAddr(addr))
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err // the rest says again who was dialled
	}
	if err != nil {
		return nil, &OpError{Op: "dial", Peer: addr, Err: err}
	}
	return conn, nil
}

// SplitAddr returns what an address names: it is a host with or without a port;
// without one it is DefaultPort. An IPv6 address without a port needs no brackets.
func SplitAddr(addr string) (host, port string) {
	if host, port, err := net.SplitHostPort(addr); err == nil {
		return host, port
	}
	if n := len(addr); n > 2 && addr[0] == '[' && addr[n-1] == ']' {
		addr = addr[1 : n-1]
	}
	return addr, DefaultPort
}

// List asks for the devices an exporter offers; those in use are mostly left
// out. The exporter takes one request a connection: close conn afterwards.
//
// Without a deadline in ctx it waits for DefaultHandshakeTimeout. Errors are
// of type [*OpError].
func List(ctx context.Context, conn net.Conn) ([]DeviceInfo, error) {
	var list []DeviceInfo
	err := handshake(ctx, conn, DefaultHandshakeTimeout, func() error {
		req := OpHeader{Version: Version, Code: OpReqDevlist}
		if _, err := conn.Write(req.Append(nil)); err != nil {
			return err
		}
		r := bufio.NewReader(conn)
		if err := readReply(r, OpRepDevlist); err != nil {
			return err
		}
		var err error
		list, err = readDevlist(r)
		return err
	})
	if err != nil {
		return nil, opError("list", conn, "", err)
	}
	return list, nil
}

// readDevlist allocates as the devices come, not as they are announced.
func readDevlist(r io.Reader) ([]DeviceInfo, error) {
	var b [DeviceInfoSize]byte
	if _, err := io.ReadFull(r, b[:4]); err != nil {
		return nil, noEOF(err)
	}
	n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	if n > MaxDevices {
		return nil, protocolError("%d devices announced, more than %d", n, MaxDevices)
	}
	var list []DeviceInfo
	for i := range n {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return nil, fmt.Errorf("device %d of %d: %w", i+1, n, noEOF(err))
		}
		d, interfaces, err := ParseDeviceInfo(b[:])
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		for range interfaces {
			if _, err := io.ReadFull(r, b[:interfaceSize]); err != nil {
				return nil, fmt.Errorf("interfaces of %s: %w", d.BusID, noEOF(err))
			}
			d.Interfaces = append(d.Interfaces, InterfaceInfo{b[0], b[1], b[2]})
		}
		list = append(list, d)
	}
	return list, nil
}

// RequestImport asks for a device. Once it has returned without an error the
// connection is in its URB phase, and not a byte more of it is read: it can be
// handed to a kernel or to [NewImporter].
//
// Without a deadline in ctx it waits for DefaultHandshakeTimeout. Errors are
// of type [*OpError]; where the exporter refused they wrap an [OpStatus].
func RequestImport(ctx context.Context, conn net.Conn, busid string) (DeviceInfo, error) {
	if err := CheckBusID(busid); err != nil {
		return DeviceInfo{}, opError("import", conn, "", err)
	}
	var d DeviceInfo
	err := handshake(ctx, conn, DefaultHandshakeTimeout, func() error {
		req := OpHeader{Version: Version, Code: OpReqImport}.Append(nil)
		if _, err := conn.Write(appendPadded(req, busid, BusIDSize)); err != nil {
			return err
		}
		if err := readReply(conn, OpRepImport); err != nil {
			return err
		}
		var b [DeviceInfoSize]byte
		if _, err := io.ReadFull(conn, b[:]); err != nil {
			return noEOF(err)
		}
		var err error
		if d, _, err = ParseDeviceInfo(b[:]); err != nil {
			return fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		if d.BusID != busid {
			return protocolError("asked for %s it offers %s", busid, d.BusID)
		}
		return nil
	})
	if err != nil {
		return DeviceInfo{}, opError("import", conn, busid, err)
	}
	return d, nil
}

// Import asks for a device and enumerates it: [RequestImport], then
// [NewImporter]. It closes conn if it fails; afterwards conn belongs to the
// Importer.
func Import(ctx context.Context, conn net.Conn, busid string, opts *ImportOptions) (*Importer, error) {
	d, err := RequestImport(ctx, conn, busid)
	if err != nil {
		conn.Close()
		return nil, err
	}
	i, err := NewImporter(ctx, conn, d.DevID(), d.Speed, opts)
	if err != nil {
		return nil, opError("import", conn, busid, unwrapOp(err))
	}
	return i, nil
}

// unwrapOp avoids naming operation and peer twice.
func unwrapOp(err error) error {
	if e, ok := err.(*OpError); ok {
		return e.Err
	}
	return err
}

// readReply reads the header of a reply. A status that is not OpOK has nothing
// behind it.
func readReply(r io.Reader, code uint16) error {
	var b [OpHeaderSize]byte
	if n, err := io.ReadFull(r, b[:]); err != nil {
		if n == 0 && err == io.EOF {
			return fmt.Errorf("peer closed the connection without an answer: %w", io.ErrUnexpectedEOF)
		}
		return noEOF(err)
	}
	h := ParseOpHeader(b[:])
	switch {
	case h.Version != Version:
		return protocolError("version %#04x in its reply, not %#04x", h.Version, Version)
	case h.Code != code:
		return protocolError("code %#04x in its reply, not %#04x", h.Code, code)
	case h.Status != OpOK:
		return h.Status
	}
	return nil
}

// handshake runs talk, which reads and writes conn, and ends it with ctx, or
// when timeout is over and ctx has no deadline.
func handshake(ctx context.Context, conn net.Conn, timeout time.Duration, talk func() error) error {
	ctx, cancel := withTimeout(ctx, timeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err := talk()
	if !stop() {
		return context.Cause(ctx)
	}
	return err
}

// withTimeout leaves a ctx that has a deadline as it is.
func withTimeout(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%w: no answer within %v", os.ErrDeadlineExceeded, timeout))
}
