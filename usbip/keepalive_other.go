//go:build !linux

package usbip

import "net"

func setUserTimeout(*net.TCPConn) {}
