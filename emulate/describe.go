package emulate

import (
	"encoding/binary"
	"fmt"
	"unicode/utf16"

	"github.com/usbns/usbns/usb"
)

// A Description is what a device says of itself, to be turned into descriptors
// by Build. Lengths, counts and string indexes are worked out; what a speed
// demands is filled in.
type Description struct {
	Vendor, Product, Version  uint16
	Class, SubClass, Protocol uint8
	// The strings are left out where they are "".
	ManufacturerName, ProductName, SerialNumber string

	Configurations []Configuration
}

// A Configuration is one set of interfaces.
type Configuration struct {
	Value        uint8 // 0 stands for the place in the list, from 1
	Name         string
	SelfPowered  bool
	RemoteWakeup bool
	MilliAmps    int // 0 to 500, at super speed to 900
	Interfaces   []Interface
}

// An Interface is one alternate setting of one interface. The settings of an
// interface follow each other.
type Interface struct {
	Number, Alternate         uint8
	Class, SubClass, Protocol uint8
	Name                      string
	// Association, if there is one, makes a function of this interface and
	// those that follow it.
	Association *Association
	// Extra are the class descriptors between the interface and its first
	// endpoint.
	Extra     []byte
	Endpoints []Endpoint
}

// An Association groups interfaces (USB 2.0 ECN, interface association
// descriptors).
type Association struct {
	Count                     uint8
	Class, SubClass, Protocol uint8
	Name                      string
}

// An Endpoint is where transfers go. Interval is bInterval, whose unit depends
// on speed and type (USB 2.0, table 9-13).
type Endpoint struct {
	Address   usb.Address
	Type      usb.TransferType
	Sync      uint8 // bits 2 to 5 of bmAttributes, for isochronous endpoints
	MaxPacket uint16
	Interval  uint8
	Burst     uint8 // bMaxBurst, at super speed
	// Audio lengthens the descriptor by the two bytes bRefresh and
	// bSynchAddress, as the audio class wants it (Audio 1.0, section 4.6.1.1).
	Audio bool
	// Extra are the class descriptors after the endpoint.
	Extra []byte
}

// Build makes the descriptors for a device that runs at speed. Errors are those
// of [usb.NewDescriptors] and of values that no descriptor can hold.
func (d Description) Build(speed usb.Speed) (*usb.Descriptors, error) {
	if !speed.Valid() || speed == usb.SpeedWireless {
		return nil, fmt.Errorf("describe %04x:%04x: no descriptors for %v speed", d.Vendor, d.Product, speed)
	}
	b := descriptorBuilder{speed: speed}
	raw := usb.Raw{Device: b.device(d)}
	for i, c := range d.Configurations {
		if c.Value == 0 {
			c.Value = uint8(i + 1)
		}
		raw.Configurations = append(raw.Configurations, b.configuration(c))
	}
	if speed.Super() {
		raw.BOS = superBOS
	}
	raw.Strings = b.strings
	if b.err != nil {
		return nil, fmt.Errorf("describe %04x:%04x: %w", d.Vendor, d.Product, b.err)
	}
	return usb.NewDescriptors(raw)
}

// superBOS says what a super speed device must (USB 3.2, section 9.6.2): link
// power management at USB 2 speeds, and which speeds there are: all from full
// speed on, all functions at full speed, latencies of 10 us (U1) and 2047 us
// (U2).
var superBOS = []byte{
	5, usb.DescBOS, 22, 0, 2,
	7, usb.DescDeviceCapability, 0x02, 0x02, 0, 0, 0,
	10, usb.DescDeviceCapability, 0x03, 0, 0x0e, 0, 1, 10, 0xff, 0x07,
}

const english = 0x0409 // en-US

// descriptorBuilder keeps the strings given out so far and the first error.
type descriptorBuilder struct {
	speed   usb.Speed
	strings []usb.RawString
	err     error
}

func (b *descriptorBuilder) fail(format string, args ...any) {
	if b.err == nil {
		b.err = fmt.Errorf(format, args...)
	}
}

// string returns the index of a string, the same one for the same text.
func (b *descriptorBuilder) string(s string) uint8 {
	if s == "" {
		return 0
	}
	if n := len(utf16.Encode([]rune(s))); n > 126 {
		b.fail("string %.20q... has %d UTF-16 units, a descriptor holds 126", s, n)
		return 0
	}
	data := usb.EncodeString(s)
	for _, have := range b.strings {
		if have.Index != 0 && string(have.Data) == string(data) {
			return have.Index
		}
	}
	if len(b.strings) == 0 {
		b.strings = append(b.strings, usb.RawString{
			Data: []byte{4, usb.DescString, english & 0xff, english >> 8},
		})
	}
	if len(b.strings) > 255 {
		b.fail("more than 255 strings")
		return 0
	}
	index := uint8(len(b.strings))
	b.strings = append(b.strings, usb.RawString{Index: index, LangID: english, Data: data})
	return index
}

func (b *descriptorBuilder) device(d Description) []byte {
	version, maxPacket0 := uint16(0x0200), uint8(64)
	switch {
	case b.speed.Super():
		version, maxPacket0 = 0x0320, 9 // 2^9
	case b.speed == usb.SpeedLow:
		maxPacket0 = 8
	}
	if len(d.Configurations) > usb.MaxConfigurations {
		b.fail("%d configurations, more than %d", len(d.Configurations), usb.MaxConfigurations)
	}
	p := []byte{18, usb.DescDevice}
	p = binary.LittleEndian.AppendUint16(p, version)
	p = append(p, d.Class, d.SubClass, d.Protocol, maxPacket0)
	p = binary.LittleEndian.AppendUint16(p, d.Vendor)
	p = binary.LittleEndian.AppendUint16(p, d.Product)
	p = binary.LittleEndian.AppendUint16(p, d.Version)
	return append(p, b.string(d.ManufacturerName), b.string(d.ProductName), b.string(d.SerialNumber),
		uint8(len(d.Configurations)))
}

func (b *descriptorBuilder) configuration(c Configuration) []byte {
	attributes := uint8(0x80) // reserved, must be set
	if c.SelfPowered {
		attributes |= 0x40
	}
	if c.RemoteWakeup {
		attributes |= 0x20
	}
	p := []byte{9, usb.DescConfiguration, 0, 0, 0, c.Value, b.string(c.Name), attributes, b.power(c.MilliAmps)}
	interfaces := 0
	for _, i := range c.Interfaces {
		if i.Alternate == 0 {
			interfaces++
		}
		p = b.appendInterface(p, i)
	}
	if len(p) > 0xffff {
		b.fail("configuration %d is %d bytes, more than 65535", c.Value, len(p))
		return p
	}
	binary.LittleEndian.PutUint16(p[2:], uint16(len(p)))
	p[4] = uint8(interfaces)
	return p
}

// power is bMaxPower: in units of 2 mA, at super speed of 8 mA.
func (b *descriptorBuilder) power(milliAmps int) uint8 {
	unit, most := 2, 500
	if b.speed.Super() {
		unit, most = 8, 900
	}
	if milliAmps < 0 || milliAmps > most {
		b.fail("%d mA, a port gives up to %d", milliAmps, most)
		return 0
	}
	return uint8((milliAmps + unit - 1) / unit)
}

func (b *descriptorBuilder) appendInterface(p []byte, i Interface) []byte {
	if a := i.Association; a != nil {
		p = append(p, 8, usb.DescInterfaceAssociation, i.Number, a.Count, a.Class, a.SubClass, a.Protocol, b.string(a.Name))
	}
	p = append(p, 9, usb.DescInterface, i.Number, i.Alternate, uint8(len(i.Endpoints)),
		i.Class, i.SubClass, i.Protocol, b.string(i.Name))
	p = append(p, i.Extra...)
	for _, e := range i.Endpoints {
		p = b.appendEndpoint(p, e)
	}
	return p
}

func (b *descriptorBuilder) appendEndpoint(p []byte, e Endpoint) []byte {
	size := uint8(7)
	if e.Audio {
		size = 9
	}
	p = append(p, size, usb.DescEndpoint, uint8(e.Address), uint8(e.Type)|e.Sync)
	p = binary.LittleEndian.AppendUint16(p, e.MaxPacket)
	p = append(p, e.Interval)
	if e.Audio {
		p = append(p, 0, 0)
	}
	if b.speed.Super() {
		p = append(p, 6, usb.DescSSEndpointCompanion, e.Burst, 0)
		p = binary.LittleEndian.AppendUint16(p, bytesPerInterval(e))
	}
	return append(p, e.Extra...)
}

// bytesPerInterval is reserved, 0, for endpoints without an interval.
func bytesPerInterval(e Endpoint) uint16 {
	if e.Type != usb.Interrupt && e.Type != usb.Isochronous {
		return 0
	}
	return e.MaxPacket * (uint16(e.Burst) + 1)
}
