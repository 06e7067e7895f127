package usbip

import (
	"net"
	"syscall"
	"time"
)

// tcpUserTimeout is TCP_USER_TIMEOUT of include/uapi/linux/tcp.h.
const tcpUserTimeout = 18

// setUserTimeout bounds the time data may go without an acknowledgement: no
// keepalive is sent as long as there is such data, and by itself TCP would
// repeat it for a quarter of an hour.
func setUserTimeout(c *net.TCPConn, d time.Duration) {
	rc, err := c.SyscallConn()
	if err != nil {
		return
	}
	rc.Control(func(fd uintptr) {
		syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(d.Milliseconds()))
	})
}
