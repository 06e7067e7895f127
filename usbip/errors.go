package usbip

import (
	"errors"
	"fmt"
	"net"
	"strings"
)

// ErrProtocol is wrapped by every error that means the peer broke the
// protocol, as opposed to a network that failed. Trying again is of no use.
var ErrProtocol = errors.New("peer violates the USB/IP protocol")

func protocolError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// An OpError says which operation failed, with whom, and on which device.
type OpError struct {
	Op    string // "dial", "list", "import", "serve", "export"
	Peer  string // address of the other side, "" if it has none
	BusID string // "" where no device is concerned
	Err   error
}

func (e *OpError) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.BusID != "" {
		b.WriteString(" " + e.BusID)
	}
	if e.Peer != "" {
		b.WriteString(" (peer " + e.Peer + ")")
	}
	return b.String() + ": " + e.Err.Error()
}

// Unwrap returns e.Err.
func (e *OpError) Unwrap() error { return e.Err }

func opError(op string, conn net.Conn, busid string, err error) error {
	return &OpError{Op: op, Peer: peerName(conn), BusID: busid, Err: err}
}

// peerName is empty for one end of a socketpair.
func peerName(conn net.Conn) string {
	a := conn.RemoteAddr()
	if a == nil {
		return ""
	}
	if s := a.String(); s != "@" {
		return s
	}
	return ""
}

// OpStatus is the status of a reply to DEVLIST or IMPORT. All but OpOK are
// errors, so errors.Is(err, usbip.OpBusy) asks for one. The numbers are those
// of enum op_common_status in the kernel's tools/usb/usbip/libsrc/usbip_common.h.
type OpStatus uint32

// The statuses of replies.
const (
	OpOK         OpStatus = 0
	OpFailed     OpStatus = 1 // what old servers say for everything, a missing device included
	OpBusy       OpStatus = 2 // another importer has the device
	OpDevError   OpStatus = 3 // the device is in a state the server cannot export
	OpNoDevice   OpStatus = 4 // there is no device of that busid
	OpUnexpected OpStatus = 5 // the server failed by itself
)

func (s OpStatus) Error() string {
	switch s {
	case OpOK:
		return "ok"
	case OpFailed:
		return "peer refused the request"
	case OpBusy:
		return "device is in use by another importer"
	case OpDevError:
		return "device is in an error state at the peer"
	case OpNoDevice:
		return "peer has no such device"
	case OpUnexpected:
		return "peer failed to handle the request"
	}
	return fmt.Sprintf("peer answered with the unknown status %d", uint32(s))
}
