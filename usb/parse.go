package usb

import (
	"encoding/binary"
	"fmt"
	"slices"
	"unicode/utf16"
)

// Bounds on what a device may say of itself. The first two are Linux's
// (USB_MAXCONFIG in drivers/usb/core/config.c, USB_MAXINTERFACES and
// USB_MAXALTSETTING in include/linux/usb.h), so nothing that a kernel would
// take is refused for its size but for MaxDescriptorBytes, the sum over all
// descriptors.
const (
	MaxConfigurations  = 8
	MaxInterfaces      = 32
	MaxAlternates      = 128
	MaxDescriptorBytes = 128 << 10
)

const (
	deviceSize    = 18
	configSize    = 9
	interfaceSize = 9
	endpointSize  = 7
	companionSize = 6
	bosSize       = 5
)

// A DescriptorError says what is wrong with a device's descriptors.
type DescriptorError struct {
	Which  string // "device", "configuration 0", "BOS", "string 3"
	Reason string
}

func (e *DescriptorError) Error() string {
	return fmt.Sprintf("%s descriptor: %s", e.Which, e.Reason)
}

func badDescriptor(which, format string, args ...any) error {
	return &DescriptorError{which, fmt.Sprintf(format, args...)}
}

// NewDescriptors checks descriptors and makes them readable. It keeps the
// slices of raw, which must not be changed afterwards. Errors are of type
// [*DescriptorError].
func NewDescriptors(raw Raw) (*Descriptors, error) {
	if err := checkSize(raw); err != nil {
		return nil, err
	}
	d := &Descriptors{raw: raw}
	var err error
	if d.device, err = parseDevice(raw.Device); err != nil {
		return nil, err
	}
	if n := int(d.device.NumConfigurations); n != len(raw.Configurations) {
		return nil, badDescriptor("device", "claims %d configurations, %d are there", n, len(raw.Configurations))
	}
	for i, b := range raw.Configurations {
		c, err := parseConfiguration(fmt.Sprintf("configuration %d", i), b)
		if err != nil {
			return nil, err
		}
		if d.Configuration(c.Value) != nil {
			return nil, badDescriptor(fmt.Sprintf("configuration %d", i), "value %d stands twice", c.Value)
		}
		d.configs = append(d.configs, c)
	}
	if err := checkBOS(raw.BOS); err != nil {
		return nil, err
	}
	for _, s := range raw.Strings {
		if err := checkString(s); err != nil {
			return nil, err
		}
	}
	for i, r := range raw.Reports {
		twice := slices.ContainsFunc(raw.Reports[:i], func(o RawReport) bool { return o.Interface == r.Interface })
		if n := d.reportLength(r.Interface); n == 0 || len(r.Data) != int(n) || twice {
			return nil, badDescriptor(fmt.Sprintf("report of interface %d", r.Interface),
				"is %d bytes, not the %d of the HID descriptor, or stands twice", len(r.Data), n)
		}
	}
	return d, nil
}

func checkSize(raw Raw) error {
	n := len(raw.Device) + len(raw.BOS)
	for _, c := range raw.Configurations {
		n += len(c)
	}
	for _, s := range raw.Strings {
		n += len(s.Data)
	}
	for _, r := range raw.Reports {
		n += len(r.Data)
	}
	if n > MaxDescriptorBytes {
		return badDescriptor("device", "all descriptors together are %d bytes, more than %d", n, MaxDescriptorBytes)
	}
	return nil
}

func parseDevice(b []byte) (DeviceDescriptor, error) {
	switch {
	case len(b) != deviceSize || b[0] != deviceSize:
		return DeviceDescriptor{}, badDescriptor("device", "is %d bytes, not %d", len(b), deviceSize)
	case b[1] != DescDevice:
		return DeviceDescriptor{}, badDescriptor("device", "is of type %#02x", b[1])
	case b[17] == 0 || b[17] > MaxConfigurations:
		return DeviceDescriptor{}, badDescriptor("device", "claims %d configurations, allowed are 1 to %d", b[17], MaxConfigurations)
	}
	return DeviceDescriptor{
		USB:   binary.LittleEndian.Uint16(b[2:]),
		Class: b[4], SubClass: b[5], Protocol: b[6],
		MaxPacket0:         b[7],
		Vendor:             binary.LittleEndian.Uint16(b[8:]),
		Product:            binary.LittleEndian.Uint16(b[10:]),
		Version:            binary.LittleEndian.Uint16(b[12:]),
		ManufacturerString: b[14],
		ProductString:      b[15],
		SerialString:       b[16],
		NumConfigurations:  b[17],
	}, nil
}

func parseConfiguration(which string, b []byte) (Configuration, error) {
	switch {
	case len(b) < configSize || b[0] < configSize:
		return Configuration{}, badDescriptor(which, "is %d bytes, too short", len(b))
	case int(b[0]) > len(b):
		return Configuration{}, badDescriptor(which, "a head of %d bytes where %d are there", b[0], len(b))
	case b[1] != DescConfiguration:
		return Configuration{}, badDescriptor(which, "is of type %#02x", b[1])
	case int(binary.LittleEndian.Uint16(b[2:])) != len(b):
		return Configuration{}, badDescriptor(which, "claims %d bytes, %d are there", binary.LittleEndian.Uint16(b[2:]), len(b))
	case b[4] > MaxInterfaces:
		return Configuration{}, badDescriptor(which, "claims %d interfaces, allowed are %d", b[4], MaxInterfaces)
	case b[5] == 0:
		return Configuration{}, badDescriptor(which, "has the value 0, which means unconfigured")
	}
	p := configParser{which: which, c: Configuration{Value: b[5], String: b[6], Attributes: b[7], MaxPower: b[8], Raw: b}}
	err := eachDescriptor(which, b[b[0]:], p.add)
	return p.c, err
}

// eachDescriptor walks a chain of descriptors whose lengths are not trusted.
func eachDescriptor(which string, b []byte, f func([]byte) error) error {
	for len(b) > 0 {
		n := int(b[0])
		if n < 2 || n > len(b) {
			return badDescriptor(which, "a part of %d bytes where %d are left", n, len(b))
		}
		if err := f(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// configParser collects what belongs to a configuration, descriptor by
// descriptor, in the order in which they come.
type configParser struct {
	which string
	c     Configuration
	alt   *Alternate
	twin  bool // the last endpoint was left out: what belongs to it is too
}

func (p *configParser) add(b []byte) error {
	switch b[1] {
	case DescInterface:
		return p.addInterface(b)
	case DescEndpoint:
		return p.addEndpoint(b)
	case DescSSEndpointCompanion:
		return p.addCompanion(b)
	}
	if p.alt != nil && len(p.alt.Endpoints) == 0 {
		p.alt.Extra = append(p.alt.Extra, b...)
	}
	return nil
}

func (p *configParser) addInterface(b []byte) error {
	if len(b) < interfaceSize {
		return badDescriptor(p.which, "an interface of %d bytes", len(b))
	}
	number, setting := b[2], b[3]
	iface := p.c.find(number)
	if iface == nil {
		if len(p.c.Interfaces) == MaxInterfaces {
			return badDescriptor(p.which, "more than %d interfaces", MaxInterfaces)
		}
		p.c.Interfaces = append(p.c.Interfaces, Interface{Number: number})
		iface = &p.c.Interfaces[len(p.c.Interfaces)-1]
	}
	if iface.setting(setting) != nil {
		return badDescriptor(p.which, "interface %d setting %d stands twice", number, setting)
	}
	if len(iface.Alternates) == MaxAlternates {
		return badDescriptor(p.which, "interface %d has more than %d settings", number, MaxAlternates)
	}
	iface.Alternates = append(iface.Alternates, Alternate{
		Setting: setting, Class: b[5], SubClass: b[6], Protocol: b[7], String: b[8],
	})
	p.alt, p.twin = &iface.Alternates[len(iface.Alternates)-1], false
	return nil
}

func (p *configParser) addEndpoint(b []byte) error {
	if len(b) < endpointSize {
		return badDescriptor(p.which, "an endpoint of %d bytes", len(b))
	}
	if p.alt == nil {
		return badDescriptor(p.which, "an endpoint before any interface")
	}
	a := Address(b[2] & 0x8f)
	if a.Number() == 0 {
		return badDescriptor(p.which, "an endpoint with the number 0")
	}
	// There are devices that list one twice. The first counts, as in Linux
	// (config_endpoint_is_duplicate in drivers/usb/core/config.c), so that
	// whoever judges the device judges what a kernel would use.
	p.twin = slices.ContainsFunc(p.alt.Endpoints, func(e Endpoint) bool { return e.Address == a })
	if p.twin {
		return nil
	}
	p.alt.Endpoints = append(p.alt.Endpoints, Endpoint{
		Address: a, Type: TransferType(b[3] & 3), Attributes: b[3],
		MaxPacket: binary.LittleEndian.Uint16(b[4:]), Interval: b[6],
	})
	return nil
}

func (p *configParser) addCompanion(b []byte) error {
	if len(b) < companionSize {
		return badDescriptor(p.which, "an endpoint companion of %d bytes", len(b))
	}
	if p.alt == nil || len(p.alt.Endpoints) == 0 {
		return badDescriptor(p.which, "an endpoint companion before any endpoint")
	}
	if p.twin {
		return nil
	}
	e := &p.alt.Endpoints[len(p.alt.Endpoints)-1]
	e.Burst, e.Companion, e.BytesPerInterval = b[2], b[3], binary.LittleEndian.Uint16(b[4:])
	return nil
}

func checkBOS(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if len(b) < bosSize || b[0] < bosSize || int(b[0]) > len(b) || b[1] != DescBOS {
		return badDescriptor("BOS", "is malformed")
	}
	if n := int(binary.LittleEndian.Uint16(b[2:])); n != len(b) {
		return badDescriptor("BOS", "claims %d bytes, %d are there", n, len(b))
	}
	return eachDescriptor("BOS", b[b[0]:], func([]byte) error { return nil })
}

func checkString(s RawString) error {
	if len(s.Data) < 2 || int(s.Data[0]) != len(s.Data) || s.Data[1] != DescString || len(s.Data)%2 != 0 {
		return badDescriptor(fmt.Sprintf("string %d", s.Index), "is malformed")
	}
	return nil
}

// String returns a string in the device's first language. Index 0, and strings
// the device does not have, are "".
func (d *Descriptors) String(index uint8) string {
	if index == 0 {
		return ""
	}
	for _, s := range d.raw.Strings {
		if s.Index == index {
			return decodeString(s.Data)
		}
	}
	return ""
}

func decodeString(b []byte) string {
	units := make([]uint16, 0, len(b)/2)
	for i := 2; i+1 < len(b); i += 2 {
		units = append(units, binary.LittleEndian.Uint16(b[i:]))
	}
	return string(utf16.Decode(units))
}

// EncodeString makes a string descriptor. A string longer than the 126 UTF-16
// units that fit is cut, between characters.
func EncodeString(s string) []byte {
	var units []uint16
	for _, r := range s {
		longer := utf16.AppendRune(units, r)
		if len(longer) > 126 {
			break
		}
		units = longer
	}
	b := []byte{byte(2 + 2*len(units)), DescString}
	for _, u := range units {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

// Answer returns what a standard GET_DESCRIPTOR to the device, or one for the
// report descriptor of an interface, asks for, cut to its Length, and false
// where the device has none: a stall, unless it is a report descriptor that
// [ReadReports] was not asked to read. The result must
// not be changed. Other requests are false as well.
func (d *Descriptors) Answer(s Setup) ([]byte, bool) {
	var b []byte
	switch {
	case s.Is(DirIn, ReqGetDescriptor):
		b = d.lookup(uint8(s.Value>>8), uint8(s.Value), s.Index)
	case s.Is(DirIn|toInterface, ReqGetDescriptor) && s.Value == descReport<<8 && s.Index <= 0xff:
		b = d.Report(uint8(s.Index))
	}
	if b == nil {
		return nil, false
	}
	return b[:min(len(b), int(s.Length))], true
}

func (d *Descriptors) lookup(kind, index uint8, langID uint16) []byte {
	switch kind {
	case DescDevice:
		return d.raw.Device
	case DescConfiguration:
		if int(index) < len(d.raw.Configurations) {
			return d.raw.Configurations[index]
		}
	case DescBOS:
		return d.raw.BOS
	case DescString:
		for _, s := range d.raw.Strings {
			if s.Index == index && (index == 0 || s.LangID == langID) {
				return s.Data
			}
		}
	}
	return nil
}
