package usbip

import "syscall"

// writeMore writes b and holds it back for the write that follows.
func writeMore(fd int, b []byte) (int, error) {
	return syscall.SendmsgN(fd, b, nil, nil, syscall.MSG_MORE)
}
