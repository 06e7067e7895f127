//go:build guest

//vmexec:modules uvcvideo

package main

import (
	"bytes"
	"encoding/binary"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/usb"
)

// Of the video class (Video 1.0, appendix A and section 4.3.1.1).
const (
	classVideo     = 0x0e
	videoControl   = 0x01 // subclasses
	videoStreaming = 0x02

	setCur       = 0x01
	getDef       = 0x87
	probeControl = 0x01 // high byte of wValue
)

// newCamera makes a camera of 16 by 16 pixels for which the kernel makes nodes.
// No picture comes.
func newCamera(serial string) (*emulate.Device, error) {
	le := binary.LittleEndian
	const interval = 333_333 // 100 ns
	const frameSize = 16 * 16 * 2
	control := append([]byte{13, 0x24, 0x01, 0x00, 0x01, 13 + 18 + 9, 0, 0, 0, 0, 0, 1, 1}, // header: version 1.0, interface 1
		18, 0x24, 0x02, 1, 0x01, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, // input terminal 1: camera
		9, 0x24, 0x03, 2, 0x01, 0x01, 0, 1, 0) // output terminal 2: USB
	frame := []byte{30, 0x24, 0x05, 1, 0, 16, 0, 16, 0}
	for _, v := range []uint32{frameSize * 8 * 30, frameSize * 8 * 30, frameSize, interval} {
		frame = le.AppendUint32(frame, v)
	}
	frame = le.AppendUint32(append(frame, 1), interval)
	stream := bytes.Join([][]byte{
		{14, 0x24, 0x01, 1, 14 + 27 + 30, 0, 0x81, 0, 2, 0, 0, 0, 1, 0}, // header: a format, terminal 2
		append(append([]byte{27, 0x24, 0x04, 1, 1}, "YUY2\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71"...), 16, 1, 0, 0, 0, 0),
		frame,
	}, nil)
	desc, err := emulate.Description{
		Class: 0xef, SubClass: 2, Protocol: 1, // see the associations
		Vendor: 0x1209, Product: 0x0011, ProductName: "camera", SerialNumber: serial,
		Configurations: []emulate.Configuration{{Interfaces: []emulate.Interface{
			{
				Association: &emulate.Association{Count: 2, Class: classVideo, SubClass: 3},
				Class:       classVideo, SubClass: videoControl, Extra: control,
			},
			{
				Number: 1, Class: classVideo, SubClass: videoStreaming, Extra: stream,
				Endpoints: []emulate.Endpoint{{Address: 0x81, Type: usb.Bulk, MaxPacket: 512}},
			},
		}}},
	}.Build(usb.SpeedHigh)
	if err != nil {
		return nil, err
	}
	probe := le.AppendUint32([]byte{0, 0, 1, 1}, interval)
	probe = append(probe, make([]byte, 10)...)
	probe = le.AppendUint32(le.AppendUint32(probe, frameSize), frameSize)
	return emulate.New(emulate.Config{
		Speed: usb.SpeedHigh, Descriptors: desc,
		Control: func(u *usb.URB) bool {
			switch {
			case u.Setup.Value != probeControl<<8:
				return emulate.Stall(u)
			case u.Setup.Request == setCur:
				u.Actual = len(u.Buffer)
				return true
			case u.Setup.Request > setCur && u.Setup.Request <= getDef|0x80:
				return emulate.Reply(u, probe)
			}
			return emulate.Stall(u)
		},
		Endpoints: map[usb.Address]emulate.Handler{0x81: func(*usb.URB) bool { return false }},
	})
}
