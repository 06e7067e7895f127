package usbip

import (
	"net"
	"time"
)

// A peer that vanished without a word is noticed after 15 + 3*5 seconds, so
// that its device becomes free for others; where data waits for it, after the
// sum of these (see setUserTimeout).
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}

// tuneTCP is best effort: a connection without it works as well.
func tuneTCP(c *net.TCPConn) {
	c.SetNoDelay(true)
	c.SetKeepAliveConfig(keepAlive)
	setUserTimeout(c)
}
