//go:build !386

package usbip

import (
	"syscall"
	"unsafe"
)

// recvNow and sendNow do not wait, so Go's scheduler need not know of them. Told
// of a system call, as by syscall.Read, it wakes the runtime's monitor thread if
// that one sleeps, which it does in a process that waits for its next message: for
// each of them the monitor would wake, find nothing, set a timer, and sleep again.
func recvNow(fd int, b []byte) (int, error) {
	n, err := call(syscall.SYS_RECVFROM, fd, b, 0)
	afterReceive(fd)
	return n, err
}

// With more, what follows is to leave in the same packet.
func sendNow(fd int, b []byte, more bool) (int, error) {
	beforeSend()
	if more {
		return call(syscall.SYS_SENDTO, fd, b, syscall.MSG_MORE)
	}
	return call(syscall.SYS_SENDTO, fd, b, 0)
}

func call(number uintptr, fd int, b []byte, flags uintptr) (int, error) {
	flags |= syscall.MSG_DONTWAIT | syscall.MSG_NOSIGNAL
	for {
		n, _, errno := syscall.RawSyscall6(number, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), flags, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}
