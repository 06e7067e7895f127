//go:build unix && !linux

package usbip

import "syscall"

// writeMore writes b.
func writeMore(fd int, b []byte) (int, error) { return syscall.Write(fd, b) }
