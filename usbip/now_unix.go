//go:build unix && (!linux || 386)

package usbip

import "syscall"

func recvNow(fd int, b []byte) (int, error) { return retry(syscall.Read, fd, b) }

func sendNow(fd int, b []byte, more bool) (int, error) { return retry(syscall.Write, fd, b) }

func retry(call func(int, []byte) (int, error), fd int, b []byte) (int, error) {
	for {
		n, err := call(fd, b)
		if err != syscall.EINTR {
			return n, err
		}
	}
}
