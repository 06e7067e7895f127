package controller

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
)

// ErrRefused is wrapped by a driver's error that means that the device was
// refused for what it is.
var ErrRefused = errors.New("device is refused")

var (
	errDetached = errors.New("port was detached meanwhile")
	errClosed   = errors.New("controller is deleted")
	errLeft     = errors.New("this process ends")
	errSave     = errors.New("cannot be written down")
	errUnknown  = errors.New("there is no such controller")
)

// An Error says what failed, on which controller and port. It unwraps to both
// its number and its cause. The numbers:
//
//	EINVAL     no such port or speed; a free port, for Detach; a bad configuration or plug
//	EBUSY      the port is in use
//	EAGAIN     another attach to the controller has not come to its end
//	ETIMEDOUT  the peer did not answer in time
//	EPROTO     the device or its descriptors cannot be used
//	EACCES     the device is refused
//	ECANCELED  the port was detached, or the context cancelled, meanwhile
//	ENODEV     the controller is deleted
//	EEXIST     a controller has that name, or index when it is restored
//	ENOENT     there is no such controller
//	ENOSPC     there are too many controllers
//
// Other numbers are those of the driver, or EIO where it has none and where
// something could not be written down.
type Error struct {
	Op         string // "create", "delete", "attach", "detach"
	Controller string // its name, or vhci_hcd.N
	Port       int    // -1 where no port is meant
	Errno      syscall.Errno
	Err        error // nil where Errno says all
}

func (e *Error) Error() string {
	s := e.Op + " " + e.Controller
	if e.Port >= 0 {
		s += fmt.Sprintf(" port %d", e.Port)
	}
	if e.Err == nil {
		return s + ": " + e.Errno.Error()
	}
	return s + ": " + e.Err.Error()
}

// Unwrap returns e.Errno and, if there is one, e.Err.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Errno}
	}
	return []error{e.Errno, e.Err}
}

// attachErrno returns the number for what a driver failed with. It is never one
// that means the state of a port.
func attachErrno(err error) syscall.Errno {
	_, badDescriptor := errors.AsType[*usb.DescriptorError](err)
	_, badTransfer := errors.AsType[*usb.StatusError](err)
	errno, isErrno := errors.AsType[syscall.Errno](err)
	switch {
	case errors.Is(err, errSave):
		return syscall.EIO
	case errors.Is(err, errClosed), errors.Is(err, errLeft):
		return syscall.ENODEV
	case errors.Is(err, errDetached), errors.Is(err, context.Canceled):
		return syscall.ECANCELED
	case errors.Is(err, ErrRefused):
		return syscall.EACCES
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return syscall.ETIMEDOUT
	case badDescriptor, badTransfer, errors.Is(err, usbip.ErrProtocol):
		return syscall.EPROTO
	case !isErrno, errno == syscall.EBUSY, errno == syscall.EAGAIN, errno == syscall.EINVAL:
		return syscall.EIO
	}
	return errno
}
