package controller

import (
	"context"
	"errors"
	"net"

	"github.com/usbns/usbns/policy"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/vhci"
)

// A Driver is what stands behind the ports of controllers. It may serve any
// number of them at the same time.
type Driver interface {
	// Attach makes a device that works of a plug, and calls its Ready last. It
	// returns soon after the end of ctx.
	//
	// If Attach fails nothing of it is left but that the Conn may be closed and
	// the Device configured; the Device is not closed. Otherwise both belong to
	// the Attachment.
	Attach(ctx context.Context, p Plug) (Attachment, error)

	// Restore finds again what an earlier process attached, from what Saved
	// returned there and a plug that has no Conn and no Device. It fails with
	// ErrNotRestored, wrapped, if that is not to be found beyond doubt, and then
	// has let go of what it did find.
	Restore(ctx context.Context, p Plug, saved []byte) (Attachment, error)
}

// A Claimer is a Driver whose devices reach a kernel. It tells which drivers claim
// a device there by its numbers, for the controller's policy.
type Claimer interface {
	Claims(*usb.Descriptors) ([]policy.Claim, error)
}

// ErrNotRestored is wrapped by the error of a Restore that did not find its
// attachment.
var ErrNotRestored = errors.New("attachment is gone")

// An Attachment is a device behind a port. All methods are safe for concurrent
// use.
type Attachment interface {
	// Descriptors returns what the device says of itself. It does no I/O.
	Descriptors() *usb.Descriptors

	// Device returns the device where it is in this process and free to be
	// used, and nil elsewhere.
	Device() usb.Device

	// Path returns the device's directory in the kernel's sysfs, and "" where no
	// kernel has the device.
	Path() string

	// Saved returns what a later process needs to find the attachment again,
	// nil if it ends with this one. It does not change.
	Saved() []byte

	// Detach lets go of the device and returns when nothing of the attachment
	// is left. It can be called again, and after Done.
	Detach()

	// Leave lets go of the attachment and leaves the device attached, for a later
	// process to restore. Where Saved is nil it is Detach. It returns when nothing
	// of the attachment is left in this process.
	Leave()

	// Done is closed when the device is gone, Detach included, or left.
	Done() <-chan struct{}

	// Err tells why the device is gone, nil if nobody knows. It is called after
	// Done.
	Err() error
}

// A Plug is what a user attaches: a connection or a device.
type Plug struct {
	// Conn is past IMPORT, see usbip.RequestImport. It is nil if Device is
	// not.
	Conn net.Conn
	// Device is used as it is. Its speed counts, not the one below.
	Device usb.Device

	// Controller is the index of the controller that the plug is for; the
	// controller sets it.
	Controller int

	Speed  usb.Speed
	DevID  uint32 // at the exporter: busnum << 16 | devnum
	SockFD int    // number of Conn for whoever attached it, to be shown only

	// From says where the device comes from, as told by whoever attached it.
	From vhci.Record

	// Judge, if not nil, is called with what the device says of itself, before
	// it is configured or any kernel sees it. Its error refuses the device.
	Judge func(*usb.Descriptors) error

	// Ready, if not nil, is called when the device works and before it shows
	// on its port. Its error refuses the device.
	Ready func(Attachment) error

	// Released ends what Ready has set up. A driver whose devices have a place that
	// others get after them calls it in between: when the device is gone, and before
	// its place is free. The controller calls it in the end anyway, but not when
	// the device is left. It may be called more than once.
	Released func()
}
