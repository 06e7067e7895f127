package wrap

import "github.com/usbns/usbns/usb"

// ownAnswer tells whether a request is answered without the device, and with
// what; a nil answer is a stall. Descriptors that were not read when the device
// was enumerated do not exist, but those of classes, which are the device's.
func (s *Shield) ownAnswer(r usb.Setup) (b []byte, own bool) {
	if b, ok := s.desc.Answer(r); ok {
		return b, true
	}
	switch {
	case r.Is(usb.DirIn, usb.ReqGetDescriptor):
		return nil, true
	case r.Is(usb.ToDevice, usb.ReqSetSEL), r.Is(usb.ToDevice, usb.ReqSetIsochDelay):
		return []byte{}, true
	}
	return nil, false
}

// answer gives such a request its outcome.
func answer(u *usb.URB, b []byte) {
	u.Status, u.Actual, u.Errors = usb.StatusOK, len(u.Buffer), 0
	if b == nil {
		u.Status, u.Actual = usb.StatusStall, 0
		return
	}
	if !u.Setup.In() {
		return
	}
	u.Actual = copy(u.Buffer, b)
	if u.Actual < len(u.Buffer) && u.Flags&usb.FlagShortNotOK != 0 {
		u.Status = usb.StatusRemoteShort
	}
}
