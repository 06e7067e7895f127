package usb

import "fmt"

// Status is the outcome of a transfer: 0, or a negated Linux errno. The
// meanings are those of Documentation/driver-api/usb/error-codes.rst.
type Status int32

// The outcomes that devices and sinks of this module produce or act on. Any
// other number may come from a peer and is passed on as it is.
const (
	StatusOK          Status = 0
	StatusUnlinked    Status = -2   // ENOENT: cancelled, waiting for that
	StatusIO          Status = -5   // EIO: failed for a reason nobody named
	StatusNoMemory    Status = -12  // ENOMEM: refused at a limit
	StatusXDev        Status = -18  // EXDEV: some packets of an isochronous transfer failed
	StatusNoDevice    Status = -19  // ENODEV: the device is gone
	StatusInvalid     Status = -22  // EINVAL: the request made no sense
	StatusStall       Status = -32  // EPIPE: the endpoint stalled; a control endpoint recovers by itself
	StatusProtocol    Status = -71  // EPROTO: no or broken answer from the device
	StatusOverflow    Status = -75  // EOVERFLOW: more data than the buffer holds (babble)
	StatusCancelled   Status = -104 // ECONNRESET: cancelled
	StatusShutdown    Status = -108 // ESHUTDOWN: the device is being taken away
	StatusTimedOut    Status = -110 // ETIMEDOUT
	StatusRemoteShort Status = -121 // EREMOTEIO: short, where FlagShortNotOK forbade it
)

var statusText = map[Status]string{
	StatusUnlinked:    "cancelled",
	StatusIO:          "input/output error",
	StatusNoMemory:    "refused at a limit",
	StatusXDev:        "some isochronous packets failed",
	StatusNoDevice:    "no such device",
	StatusInvalid:     "invalid transfer",
	StatusStall:       "endpoint stalled",
	StatusProtocol:    "protocol error",
	StatusOverflow:    "device sent too much data",
	StatusCancelled:   "cancelled",
	StatusShutdown:    "device is shut down",
	StatusTimedOut:    "timed out",
	StatusRemoteShort: "short transfer",
}

// Err returns nil for StatusOK and a [*StatusError] for all others.
func (s Status) Err() error {
	if s == StatusOK {
		return nil
	}
	return &StatusError{s}
}

func (s Status) String() string {
	if s == StatusOK {
		return "ok"
	}
	if t, ok := statusText[s]; ok {
		return t
	}
	return fmt.Sprintf("status %d", int32(s))
}

// A StatusError is a transfer's failure as an error.
type StatusError struct{ Status Status }

func (e *StatusError) Error() string { return e.Status.String() }

// Is matches another StatusError of the same Status, so that
// errors.Is(err, usb.StatusStall.Err()) asks for a stall.
func (e *StatusError) Is(target error) bool {
	t, ok := target.(*StatusError)
	return ok && t.Status == e.Status
}
