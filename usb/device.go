package usb

import (
	"context"
	"errors"
)

// A Device is a USB device, wherever it is. All methods are safe for
// concurrent use.
type Device interface {
	// Speed is the speed the device runs at. It does not change.
	Speed() Speed

	// Descriptors returns what the device says of itself: validated, complete
	// and immutable. It does no I/O.
	Descriptors() *Descriptors

	Submitter

	// Reset returns the device to its unconfigured state, as a port reset
	// does. URBs in flight complete before it returns. It is not a way to
	// wake a device that is gone.
	Reset(ctx context.Context) error

	// Gone is closed when the device is no longer there, for whatever reason,
	// Close included, after the last URB has completed.
	Gone() <-chan struct{}

	// Close lets go of the device: URBs in flight complete, Gone is closed.
	// It is safe to call more than once.
	Close() error
}

// A Submitter takes URBs: the part of a [Device] that is enough to ask it for
// its descriptors.
type Submitter interface {
	// Submit hands u to the device and never blocks. If it returns an error,
	// Complete is not called and u still belongs to the caller. The errors
	// are [ErrGone], [ErrNoEndpoint], [ErrTooMany] and [ErrInvalid], wrapped.
	//
	// URBs submitted one after the other to one endpoint complete in that
	// order.
	Submit(u *URB) error

	// Cancel asks for u to complete soon. Complete is called exactly once as
	// always, with the true outcome: a transfer that had already succeeded
	// still says so. Cancelling a URB that is not in flight does nothing, but
	// the caller must not have submitted it anew in the meantime.
	Cancel(u *URB)
}

// A Batcher is a [Device] on which transfers come and go in batches, so that it
// and who submits can collect what each of them sends. It is optional; a wrapper
// that has it passes all three on.
type Batcher interface {
	// Hold says that more is about to be submitted. What was submitted may wait
	// for that, until Release has been called as often.
	Hold()
	Release()
	// Watch has hold called when several URBs may be about to complete, and
	// release when those at hand have. Both must not block. It ends with stop; a
	// release that is due may still be called after it.
	Watch(hold, release func()) (stop func())
}

// Errors of Submit. Callers compare with errors.Is.
var (
	ErrGone       = errors.New("device is gone")
	ErrNoEndpoint = errors.New("no such endpoint in the current configuration")
	ErrTooMany    = errors.New("too many transfers in flight")
	ErrInvalid    = errors.New("invalid transfer")
)

// A URB is one transfer, the USB request block of other stacks. The fields in
// the first group are set by the submitter and left alone by the device, those
// in the second are set by the device before Complete.
//
// A URB may be used again once it has completed; nothing in it needs to be
// cleared. It must not be copied or changed while it is in flight.
type URB struct {
	// Endpoint is where the transfer goes. For control transfers it is 0,
	// with the direction bit set or not: Setup decides.
	Endpoint Address
	Type     TransferType
	// Setup is the first stage of a control transfer.
	Setup Setup
	Flags Flags
	// Buffer holds the data to send, or receives it. For an isochronous
	// transfer the packets lie where their Offset says, with gaps between
	// them where packets were short.
	Buffer []byte
	// MayKeep allows the device to keep Buffer. One that lets go of the transfer
	// before it can let go of the memory sets Buffer to nil, and the submitter
	// must not look at that memory any more.
	MayKeep bool
	// Packets is the list of an isochronous transfer, nil for all others.
	Packets []IsoPacket
	// StartFrame and Interval matter to isochronous and interrupt transfers;
	// most devices ignore them.
	StartFrame int32
	Interval   int32
	// Complete is called once for each successful Submit, by any goroutine,
	// with no lock held. It must not block and may submit.
	Complete func(*URB)

	// Status is the outcome; see [Status.Err].
	Status Status
	// Actual counts the bytes of data moved: at most len(Buffer), the setup
	// packet not included. A failed transfer may have moved some.
	Actual int
	// Errors counts the packets of an isochronous transfer that failed.
	Errors int

	// Submitter and Holder are private slots of the submitting and of the
	// executing side, so that neither needs a map or an allocation for each
	// transfer. A wrapper that passes a URB on uses one of its own.
	Submitter, Holder any
}

// An IsoPacket is one packet of an isochronous transfer. Offset and Length are
// set by the submitter, the rest by the device.
type IsoPacket struct {
	Offset, Length int
	Actual         int
	Status         Status
}

// Flags modify a transfer. The values are those of include/linux/usb.h, as
// they travel in the transfer_flags of a USB/IP submit.
type Flags uint32

// The flags that have a meaning to a device.
const (
	FlagShortNotOK Flags = 0x0001 // a short IN transfer is an error
	FlagIsoASAP    Flags = 0x0002 // start in the next free frame
	FlagZeroPacket Flags = 0x0040 // end an OUT transfer that fills its last packet with an empty one
	FlagDirIn      Flags = 0x0200 // set by Linux on every IN transfer
)

// In reports whether data runs from the device to the submitter. A control
// transfer's direction is its setup packet's.
func (u *URB) In() bool {
	if u.Type == Control {
		return u.Setup.In()
	}
	return u.Endpoint.In()
}

// Do submits u, waits for it to complete, and returns how it went. When ctx
// ends first, Do cancels u, waits for that, and returns the cause; the URB's
// own fields tell what was moved until then. Do sets u.Complete.
func Do(ctx context.Context, s Submitter, u *URB) error {
	done := make(chan struct{})
	u.Complete = func(*URB) { close(done) }
	if err := s.Submit(u); err != nil {
		return err
	}
	select {
	case <-done:
		return u.Status.Err()
	case <-ctx.Done():
	}
	s.Cancel(u)
	<-done
	if u.Status == StatusOK {
		return nil
	}
	return context.Cause(ctx)
}

// ControlTransfer makes one control transfer on endpoint 0 and returns the number of
// bytes moved. The length of data must be setup.Length; for an IN request data
// receives the answer.
func ControlTransfer(ctx context.Context, s Submitter, setup Setup, data []byte) (int, error) {
	u := URB{Type: Control, Setup: setup, Buffer: data}
	if setup.In() {
		u.Endpoint |= DirIn
		u.Flags = FlagDirIn
	}
	err := Do(ctx, s, &u)
	return u.Actual, err
}
