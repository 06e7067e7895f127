package usb

import (
	"maps"
	"sync"
	"sync/atomic"
)

// Endpoints knows which endpoints a device has at the moment, and of what type
// they are. That follows from its descriptors and from the SET_CONFIGURATION
// and SET_INTERFACE requests it has accepted, and from nothing else: whoever
// passes URBs on without a transfer type (a USB/IP session, usbfs, a capture)
// shows each completed control transfer to Observe and asks Lookup.
//
// All methods are safe for concurrent use; Lookup takes no lock and does not
// allocate.
type Endpoints struct {
	desc *Descriptors
	now  atomic.Pointer[choice]
	mu   sync.Mutex // of who changes now
}

// A choice is a configuration and the settings of its interfaces. It does not
// change.
type choice struct {
	config     *Configuration  // nil: the device is not configured
	alternates map[uint8]uint8 // interface number -> setting, where one was chosen
	endpoints  []*Endpoint
	places     [32]uint8 // 1 + the place in endpoints of an address, 0 for none
}

var unconfigured choice

// NewEndpoints starts with the device unconfigured: only endpoint 0 exists.
func NewEndpoints(d *Descriptors) *Endpoints {
	e := &Endpoints{desc: d}
	e.now.Store(&unconfigured)
	return e
}

// Lookup returns the endpoint at a in the current configuration. Endpoint 0
// always exists and is of type Control.
func (e *Endpoints) Lookup(a Address) (Endpoint, bool) {
	if a.Number() == 0 {
		return Endpoint{Address: a & DirIn, Type: Control}, true
	}
	c := e.now.Load()
	if n := c.places[a.index()]; n != 0 {
		return *c.endpoints[n-1], true
	}
	return Endpoint{}, false
}

// Configuration returns the value of the current configuration, 0 when the
// device is not configured.
func (e *Endpoints) Configuration() uint8 {
	if c := e.now.Load().config; c != nil {
		return c.Value
	}
	return 0
}

// Alternate returns the current setting of an interface, and false if the
// current configuration has no such interface.
func (e *Endpoints) Alternate(iface uint8) (uint8, bool) {
	c := e.now.Load()
	i := c.config.find(iface)
	if i == nil {
		return 0, false
	}
	return c.setting(i).Setting, true
}

// Observe takes note of a control transfer that has completed. Anything but a
// successful SET_CONFIGURATION or SET_INTERFACE leaves things as they are, and
// so do values the descriptors do not know.
func (e *Endpoints) Observe(s Setup, outcome Status) {
	if outcome != StatusOK {
		return
	}
	switch {
	case s.Is(ToDevice, ReqSetConfiguration):
		e.setConfiguration(uint8(s.Value))
	case s.Is(ToInterface, ReqSetInterface):
		e.setInterface(uint8(s.Index), uint8(s.Value))
	}
}

// Reset returns to the unconfigured state, as a port reset does.
func (e *Endpoints) Reset() { e.setConfiguration(0) }

func (e *Endpoints) setConfiguration(value uint8) {
	c := e.desc.Configuration(value)
	if c == nil && value != 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.now.Store(choose(c, nil))
}

func (e *Endpoints) setInterface(number, setting uint8) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.now.Load()
	if c.config.find(number).setting(setting) == nil {
		return
	}
	alternates := map[uint8]uint8{}
	maps.Copy(alternates, c.alternates)
	alternates[number] = setting
	e.now.Store(choose(c.config, alternates))
}

func choose(config *Configuration, alternates map[uint8]uint8) *choice {
	if config == nil {
		return &unconfigured
	}
	c := &choice{config: config, alternates: alternates}
	for i := range config.Interfaces {
		alt := c.setting(&config.Interfaces[i])
		for j := range alt.Endpoints {
			ep := &alt.Endpoints[j]
			// Of two with one address the first counts, as in Linux.
			if place := &c.places[ep.Address.index()]; *place == 0 {
				c.endpoints = append(c.endpoints, ep)
				*place = uint8(len(c.endpoints))
			}
		}
	}
	return c
}

// setting returns the setting i is in. Where there is no setting 0 it starts
// with its first, as in Linux (usb_set_configuration in
// drivers/usb/core/message.c).
func (c *choice) setting(i *Interface) *Alternate {
	if alt := i.setting(c.alternates[i.Number]); alt != nil {
		return alt
	}
	return &i.Alternates[0]
}

// find and setting accept nil, so that look-ups chain.
func (c *Configuration) find(number uint8) *Interface {
	if c == nil {
		return nil
	}
	for i := range c.Interfaces {
		if c.Interfaces[i].Number == number {
			return &c.Interfaces[i]
		}
	}
	return nil
}

func (i *Interface) setting(number uint8) *Alternate {
	if i == nil {
		return nil
	}
	for j := range i.Alternates {
		if i.Alternates[j].Setting == number {
			return &i.Alternates[j]
		}
	}
	return nil
}
