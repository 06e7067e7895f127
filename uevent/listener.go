//go:build linux

package uevent

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// The groups of the netlink protocol: who is told.
const (
	groupKernel = 1
	groupUdev   = 2
)

// receiveBuffer holds the events of some hundred devices that come at once.
const receiveBuffer = 1 << 20

// ErrLost is wrapped by the error of a Receive that found events missing.
var ErrLost = errors.New("events of devices were lost")

// A Listener hears the kernel's events. Receive and Close may be called at the
// same time.
type Listener struct {
	socket *os.File
	raw    syscall.RawConn
	buffer [maxMessage + 1]byte
}

// Listen hears the events in the network namespace of the calling thread, from
// now on.
func Listen() (*Listener, error) {
	fd, err := netlinkSocket()
	if err != nil {
		return nil, err
	}
	socket := os.NewFile(uintptr(fd), "uevents")
	l := &Listener{socket: socket}
	// Without CAP_NET_ADMIN the system's limit stays.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
	if l.raw, err = socket.SyscallConn(); err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groupKernel})
	}
	if err != nil {
		socket.Close()
		return nil, fmt.Errorf("listen to the kernel's events: %w", err)
	}
	return l, nil
}

func netlinkSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return -1, fmt.Errorf("open a socket for events of devices: %w", err)
	}
	return fd, nil
}

// Receive waits for the next event. The error wraps ErrLost if events are
// missing before those that come next, and os.ErrClosed after Close; the
// listener is good for nothing after any other. It is for one goroutine.
func (l *Listener) Receive() (Event, error) {
	for {
		n, flags, from, err := l.receive()
		switch {
		case errors.Is(err, unix.ENOBUFS):
			return Event{}, fmt.Errorf("%w: more came than there was room for", ErrLost)
		case err != nil:
			return Event{}, fmt.Errorf("receive an event of a device: %w", err)
		case !fromKernel(from):
			continue
		case flags&unix.MSG_TRUNC != 0 || n > maxMessage:
			return Event{}, fmt.Errorf("%w: one is longer than %d bytes", ErrLost, maxMessage)
		}
		e, err := Parse(l.buffer[:n])
		if err != nil {
			return Event{}, fmt.Errorf("%w: %w", ErrLost, err)
		}
		return e, nil
	}
}

func (l *Listener) receive() (n, flags int, from unix.Sockaddr, err error) {
	rerr := l.raw.Read(func(fd uintptr) bool {
		for {
			n, _, flags, from, err = unix.Recvmsg(int(fd), l.buffer[:], nil, unix.MSG_DONTWAIT)
			if !errors.Is(err, unix.EINTR) {
				return !errors.Is(err, unix.EAGAIN)
			}
		}
	})
	if rerr != nil {
		return 0, 0, nil, os.ErrClosed // the only way to fail
	}
	return n, flags, from, err
}

func fromKernel(from unix.Sockaddr) bool {
	a, ok := from.(*unix.SockaddrNetlink)
	return ok && a.Pid == 0 && a.Groups == groupKernel
}

// Close ends a Receive that waits.
func (l *Listener) Close() error { return l.socket.Close() }
