package usbip

import (
	"net"
	"time"
)

// tuneTCP is best effort: a connection without it works as well. Of the time a
// vanished peer has, half passes before it is asked for a sign of life, and
// then it is asked three times: by default after 15, 20 and 25 seconds.
func tuneTCP(c *net.TCPConn, peerTimeout time.Duration) {
	c.SetNoDelay(true)
	c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: peerTimeout / 2, Interval: peerTimeout / 6, Count: 3})
	setUserTimeout(c, peerTimeout)
}
