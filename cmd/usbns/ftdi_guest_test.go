//go:build guest

//vmexec:modules ftdi_sio

package main

import (
	"bytes"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/usb"
)

// newFTDI makes an FT232R, a serial adapter of no class that USB has, with a plug
// in its socket that sends back what comes. The kernel's driver knows it by its
// numbers; its spare pins are a GPIO chip.
func newFTDI(serial string) (*emulate.Device, error) {
	const (
		in, out = usb.Address(0x81), usb.Address(0x02)
		packet  = 64

		getModemStatus  = 5
		getLatencyTimer = 10
	)
	desc, err := emulate.Description{
		Vendor: 0x0403, Product: 0x6001, Version: 0x0600, ProductName: "FT232R", SerialNumber: serial,
		Configurations: []emulate.Configuration{{Interfaces: []emulate.Interface{{
			Class: 0xff, SubClass: 0xff, Protocol: 0xff,
			Endpoints: []emulate.Endpoint{{Address: in, Type: usb.Bulk, MaxPacket: packet}, {Address: out, Type: usb.Bulk, MaxPacket: packet}},
		}}}},
	}.Build(usb.SpeedFull)
	if err != nil {
		return nil, err
	}
	status := []byte{0xb0, 0x60} // CTS, DSR and carrier; the transmitter is empty
	var echo bytes.Buffer
	var d *emulate.Device
	d, err = emulate.New(emulate.Config{
		Speed: usb.SpeedFull, Descriptors: desc,
		Control: func(u *usb.URB) bool {
			switch {
			case u.Setup.RequestType == usb.KindVendor:
				return emulate.Accept(u)
			case u.Setup.Is(usb.DirIn|usb.KindVendor, getModemStatus):
				return emulate.Reply(u, status)
			case u.Setup.Is(usb.DirIn|usb.KindVendor, getLatencyTimer):
				return emulate.Reply(u, []byte{16})
			case u.Setup.RequestType == usb.DirIn|usb.KindVendor: // of an empty EEPROM
				return emulate.Reply(u, make([]byte, u.Setup.Length))
			}
			return emulate.Stall(u)
		},
		Endpoints: map[usb.Address]emulate.Handler{
			out: func(u *usb.URB) bool {
				echo.Write(u.Buffer)
				d.Wake(in)
				return emulate.Accept(u)
			},
			// The status is ahead of what comes back in each packet.
			in: func(u *usb.URB) bool {
				if echo.Len() == 0 {
					return false
				}
				n := copy(u.Buffer, status)
				u.Actual = n + copy(u.Buffer[n:], echo.Next(packet-1-n))
				return true
			},
		},
	})
	return d, err
}

// echoFTDI prints a line that went through the container's adapter and back. It
// is no session's leader whose terminal that would become.
const echoFTDI = `( exec 3<>"$(echo /dev/usbns/*/*-ttyUSB)"; stty raw -echo <&3; echo there and back >&3; head -n 1 <&3 )`
