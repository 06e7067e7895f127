//go:build !linux

package usbip

import (
	"net"
	"time"
)

func setUserTimeout(*net.TCPConn, time.Duration) {}
