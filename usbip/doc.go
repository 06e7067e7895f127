// Package usbip speaks USB/IP, version 0x0111: the protocol by which a machine
// uses a USB device that is plugged into another one.
//
// An [Importer] is a remote device as a [usb.Device]. An [Exporter] offers
// [usb.Device]s to importers, and [ServeDevice] is what it does for one
// connection, for any socket that is past the handshake.
package usbip
