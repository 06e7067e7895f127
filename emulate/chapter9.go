package emulate

import "github.com/usbns/usbns/usb"

// Reply answers an IN transfer with b, or with as much of it as was asked for.
func Reply(u *usb.URB, b []byte) (done bool) {
	u.Actual = copy(u.Buffer[:wanted(u)], b)
	return true
}

// Accept takes all data of an OUT transfer.
func Accept(u *usb.URB) (done bool) {
	u.Actual = wanted(u)
	return true
}

// Stall refuses a control transfer, or halts the endpoint of any other.
func Stall(u *usb.URB) (done bool) {
	u.Status = usb.StatusStall
	return true
}

// Features of super speed devices (USB 3.2, table 9-7). They are remembered by
// nobody: there is no link whose power they could manage.
const (
	featureU1Enable        = 48
	featureU2Enable        = 49
	featureLTMEnable       = 50
	featureFunctionSuspend = 0 // of an interface
)

// control is the handler of endpoint 0: the requests every device must know
// (USB 2.0, section 9.4), and the function's for the rest.
func (d *Device) control(u *usb.URB) (done bool) {
	s := u.Setup
	if s.RequestType&usb.KindMask != usb.KindStandard {
		return d.function(u)
	}
	switch s.Request {
	case usb.ReqGetDescriptor:
		if b, ok := d.desc.Answer(s); ok {
			return Reply(u, b)
		}
		return d.function(u)
	case usb.ReqGetStatus:
		return d.getStatus(u)
	case usb.ReqSetFeature:
		return d.setFeature(u, true)
	case usb.ReqClearFeature:
		return d.setFeature(u, false)
	case usb.ReqGetConfiguration:
		if !s.In() {
			return Stall(u)
		}
		return Reply(u, []byte{d.Configuration()})
	case usb.ReqSetConfiguration:
		return d.setConfiguration(u)
	case usb.ReqGetInterface:
		setting, ok := d.setting(s.Index)
		if !ok || !s.Is(usb.DirIn|usb.ToInterface, usb.ReqGetInterface) {
			return Stall(u)
		}
		return Reply(u, []byte{setting})
	case usb.ReqSetInterface:
		return d.setInterface(u)
	case usb.ReqSetSEL, usb.ReqSetIsochDelay:
		if s.In() || !d.speed.Super() {
			return Stall(u)
		}
		return Accept(u)
	}
	return d.function(u)
}

func (d *Device) getStatus(u *usb.URB) (done bool) {
	var status byte
	switch s := u.Setup; s.RequestType {
	case usb.DirIn | usb.ToDevice:
		status = d.deviceStatus()
	case usb.DirIn | usb.ToInterface:
		if _, ok := d.setting(s.Index); !ok {
			return Stall(u)
		}
	case usb.DirIn | usb.ToEndpoint:
		e, ok := d.endpoint(s.Index)
		if !ok {
			return Stall(u)
		}
		if d.halted(e.Address) {
			status = 1
		}
	default:
		return Stall(u)
	}
	return Reply(u, []byte{status, 0})
}

// deviceStatus is self-powered in bit 0, remote wake-up in bit 1 (USB 2.0,
// figure 9-4).
func (d *Device) deviceStatus() (status byte) {
	if c := d.desc.Configuration(d.Configuration()); c != nil {
		status = c.Attributes >> 6 & 1
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.remoteWakeup {
		status |= 2
	}
	return status
}

func (d *Device) halted(a usb.Address) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.queues[slot(a)].halted
}

func (d *Device) setFeature(u *usb.URB, on bool) (done bool) {
	s := u.Setup
	switch s.RequestType {
	case usb.ToEndpoint:
		return d.setHalt(u, on)
	case usb.ToInterface:
		if _, ok := d.setting(s.Index); ok && d.speed.Super() && s.Value == featureFunctionSuspend {
			return Accept(u)
		}
	case usb.ToDevice:
		switch s.Value {
		case usb.FeatureDeviceRemoteWakeup:
			return d.setRemoteWakeup(u, on)
		case featureU1Enable, featureU2Enable, featureLTMEnable:
			if d.speed.Super() && d.Configuration() != 0 {
				return Accept(u)
			}
		}
	}
	return Stall(u)
}

// setHalt halts an endpoint, or makes it work again. Endpoint 0 has no halt
// that would outlast a request, and isochronous endpoints have none at all.
func (d *Device) setHalt(u *usb.URB, on bool) (done bool) {
	e, ok := d.endpoint(u.Setup.Index)
	if !ok || u.Setup.Value != usb.FeatureEndpointHalt || e.Type == usb.Isochronous {
		return Stall(u)
	}
	if e.Address.Number() == 0 {
		return Accept(u)
	}
	i := slot(e.Address)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.queues[i].halted = on
	d.ready |= 1 << i
	return Accept(u)
}

func (d *Device) setRemoteWakeup(u *usb.URB, on bool) (done bool) {
	c := d.desc.Configuration(d.Configuration())
	if c == nil || c.Attributes&0x20 == 0 {
		return Stall(u)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.remoteWakeup = on
	return Accept(u)
}

func (d *Device) setConfiguration(u *usb.URB) (done bool) {
	s := u.Setup
	value := uint8(s.Value)
	if s.RequestType != usb.ToDevice || s.Value > 0xff || value != 0 && d.desc.Configuration(value) == nil {
		return Stall(u)
	}
	d.change(s, ^uint32(1))
	return Accept(u)
}

func (d *Device) setInterface(u *usb.URB) (done bool) {
	s := u.Setup
	i := d.findInterface(s.Index)
	if s.RequestType != usb.ToInterface || i == nil || !hasSetting(i, s.Value) {
		return Stall(u)
	}
	var queues uint32
	for _, a := range addresses(i) {
		queues |= 1 << slot(a)
	}
	d.change(s, queues)
	return Accept(u)
}

// change takes a new configuration or setting into effect and ends what was in
// flight on the endpoints it concerns, before the request itself completes.
func (d *Device) change(s usb.Setup, queues uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.endpoints.Observe(s, usb.StatusOK)
	d.renew(queues, usb.StatusShutdown)
	d.sweep(1)
	d.tellChanged()
}

// setting and endpoint look up what the index of a request names, which has
// nothing in its upper byte.
func (d *Device) setting(index uint16) (uint8, bool) {
	if index > 0xff {
		return 0, false
	}
	return d.Alternate(uint8(index))
}

func (d *Device) endpoint(index uint16) (usb.Endpoint, bool) {
	if index > 0xff {
		return usb.Endpoint{}, false
	}
	return d.endpoints.Lookup(usb.Address(index))
}

func (d *Device) findInterface(number uint16) *usb.Interface {
	c := d.desc.Configuration(d.Configuration())
	if c == nil {
		return nil
	}
	for i := range c.Interfaces {
		if uint16(c.Interfaces[i].Number) == number {
			return &c.Interfaces[i]
		}
	}
	return nil
}

func hasSetting(i *usb.Interface, setting uint16) bool {
	for _, alt := range i.Alternates {
		if uint16(alt.Setting) == setting {
			return true
		}
	}
	return false
}
