package vhci

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
)

// Errors a caller may want to decide on, found with [errors.Is] in the
// *[OpError] of a failed call. The first two are also [fs.ErrNotExist].
var (
	// ErrNotLoaded: there is no vhci_hcd directory at all.
	ErrNotLoaded error = &missing{"vhci_hcd is not loaded: modprobe vhci-hcd, or create the controller with --driver user"}
	// ErrNoController: there are controllers, but not this one.
	ErrNoController error = &missing{"no such controller"}
	// ErrNoFreePort: every port of the half that the speed needs is taken, or
	// belongs to a controller that never started.
	ErrNoFreePort = errors.New("no free port")
)

type missing struct{ text string }

func (m *missing) Error() string { return m.text }
func (m *missing) Unwrap() error { return syscall.ENOENT }

// An OpError says what failed on which controller and port. It unwraps to the
// cause, which is a [syscall.Errno] where the kernel, or the server of the
// file, said no.
type OpError struct {
	Op   string // "open", "status", "attach", ...
	Path string // the controller's directory, or the file
	Port int    // -1 where no single port is meant
	Err  error
}

func (e *OpError) Error() string {
	var b strings.Builder
	b.WriteString("vhci: " + e.Op)
	if e.Port >= 0 {
		fmt.Fprintf(&b, " port %d", e.Port)
	}
	if e.Path != "" {
		b.WriteString(" of " + e.Path)
	}
	b.WriteString(": " + e.Err.Error())
	if hint := e.hint(); hint != "" {
		b.WriteString(" (" + hint + ")")
	}
	return b.String()
}

func (e *OpError) Unwrap() error { return e.Err }

// hint tells what the errno of a control file means, since "invalid argument"
// tells nobody which argument. An error that comes with words of its own needs
// none.
func (e *OpError) hint() string {
	errno, ok := e.Err.(syscall.Errno)
	if !ok {
		return ""
	}
	switch {
	case errno == syscall.EACCES || errno == syscall.EPERM:
		return "only the controller's owner may; the kernel's belong to root"
	case errno == syscall.ENOTCONN:
		return "the daemon that served this directory is gone"
	case errno == syscall.EAGAIN:
		return "the controller is not ready, or busy with another attach"
	case e.Op == opAttach && errno == syscall.EBUSY:
		return "the port is taken"
	case e.Op == opAttach && errno == syscall.EINVAL:
		return "there is no such port or speed, or the descriptor is no stream socket"
	case e.Op == opDetach && errno == syscall.EINVAL:
		return "there is no such port, or nothing is attached to it"
	}
	return ""
}

// The operations that hint distinguishes.
const (
	opAttach = "attach"
	opDetach = "detach"
)

// bare takes the path off an error of package os: an OpError has its own.
func bare(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}

// A syntaxError is text that is not what a file of a controller holds. To the
// writer of such a file it is EINVAL, as in the kernel.
type syntaxError struct{ text string }

func (e *syntaxError) Error() string { return e.text }
func (e *syntaxError) Unwrap() error { return syscall.EINVAL }

func syntaxf(format string, args ...any) error {
	return &syntaxError{fmt.Sprintf(format, args...)}
}
