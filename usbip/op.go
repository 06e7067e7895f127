package usbip

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/usbns/usbns/usb"
)

// Version is the version of the protocol that is spoken here, the only one
// ever in wide use.
const Version = 0x0111

// DefaultPort is the TCP port of a USB/IP server.
const DefaultPort = "3240"

// Codes of the operations that open a connection.
const (
	OpReqDevlist uint16 = 0x8005
	OpRepDevlist uint16 = 0x0005
	OpReqImport  uint16 = 0x8003
	OpRepImport  uint16 = 0x0003
)

// Sizes on the wire, in bytes.
const (
	OpHeaderSize   = 8
	DeviceInfoSize = 312
	BusIDSize      = 32 // with the NUL that ends it

	pathSize      = 256
	interfaceSize = 4
)

// An OpHeader starts every request and reply before the URB phase.
type OpHeader struct {
	Version uint16
	Code    uint16
	Status  OpStatus // 0 in requests
}

// Append encodes h.
func (h OpHeader) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, h.Version)
	b = binary.BigEndian.AppendUint16(b, h.Code)
	return binary.BigEndian.AppendUint32(b, uint32(h.Status))
}

// ParseOpHeader decodes the first OpHeaderSize bytes of b.
func ParseOpHeader(b []byte) OpHeader {
	return OpHeader{
		Version: binary.BigEndian.Uint16(b),
		Code:    binary.BigEndian.Uint16(b[2:]),
		Status:  OpStatus(binary.BigEndian.Uint32(b[4:])),
	}
}

// DeviceInfo is what an exporter says of a device before it is imported.
type DeviceInfo struct {
	Path                      string // in the exporter's sysfs; for people
	BusID                     string
	BusNum, DevNum            uint32
	Speed                     usb.Speed // SpeedUnknown for a number without meaning
	Vendor, Product, Version  uint16
	Class, SubClass, Protocol uint8
	Configuration             uint8 // value of the current one
	NumConfigurations         uint8
	// Interfaces are those of the current configuration. They are only known
	// from a list, and some servers leave them out of it.
	Interfaces []InterfaceInfo
}

// InterfaceInfo is the class of an interface.
type InterfaceInfo struct{ Class, SubClass, Protocol uint8 }

// DevID is the number by which URB PDUs name the device.
func (d *DeviceInfo) DevID() uint32 { return d.BusNum<<16 | d.DevNum&0xffff }

// Append encodes d without its interfaces, as in the reply to IMPORT.
func (d *DeviceInfo) Append(b []byte) []byte {
	b = appendPadded(b, d.Path, pathSize)
	b = appendPadded(b, d.BusID, BusIDSize)
	b = binary.BigEndian.AppendUint32(b, d.BusNum)
	b = binary.BigEndian.AppendUint32(b, d.DevNum)
	b = binary.BigEndian.AppendUint32(b, uint32(d.Speed))
	b = binary.BigEndian.AppendUint16(b, d.Vendor)
	b = binary.BigEndian.AppendUint16(b, d.Product)
	b = binary.BigEndian.AppendUint16(b, d.Version)
	return append(b, d.Class, d.SubClass, d.Protocol,
		d.Configuration, d.NumConfigurations, uint8(min(len(d.Interfaces), 255)))
}

// AppendInterfaces encodes what follows a device in the reply to DEVLIST.
func (d *DeviceInfo) AppendInterfaces(b []byte) []byte {
	for _, i := range d.Interfaces[:min(len(d.Interfaces), 255)] {
		b = append(b, i.Class, i.SubClass, i.Protocol, 0)
	}
	return b
}

// appendPadded cuts s so that a NUL always ends it.
func appendPadded(b []byte, s string, size int) []byte {
	s = s[:min(len(s), size-1)]
	b = append(b, s...)
	return append(b, make([]byte, size-len(s))...)
}

// ParseDeviceInfo decodes the first DeviceInfoSize bytes of b, and tells how
// many interfaces follow in a reply to DEVLIST. It refuses names that could do
// harm where they are printed or made into paths.
func ParseDeviceInfo(b []byte) (d DeviceInfo, interfaces int, err error) {
	_ = b[DeviceInfoSize-1]
	d.BusID = cutNUL(b[pathSize : pathSize+BusIDSize])
	if err := CheckBusID(d.BusID); err != nil {
		return DeviceInfo{}, 0, err
	}
	d.Path = cutNUL(b[:pathSize])
	for _, c := range []byte(d.Path) {
		if c < ' ' || c > '~' {
			return DeviceInfo{}, 0, fmt.Errorf("device %s: path %q holds more than printable ASCII", d.BusID, d.Path)
		}
	}
	n := b[pathSize+BusIDSize : DeviceInfoSize]
	d.BusNum = binary.BigEndian.Uint32(n)
	d.DevNum = binary.BigEndian.Uint32(n[4:])
	if s := binary.BigEndian.Uint32(n[8:]); s <= uint32(usb.SpeedSuperPlus) {
		d.Speed = usb.Speed(s)
	}
	d.Vendor = binary.BigEndian.Uint16(n[12:])
	d.Product = binary.BigEndian.Uint16(n[14:])
	d.Version = binary.BigEndian.Uint16(n[16:])
	d.Class, d.SubClass, d.Protocol = n[18], n[19], n[20]
	d.Configuration, d.NumConfigurations = n[21], n[22]
	return d, int(n[23]), nil
}

func cutNUL(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// CheckBusID reports why s cannot be a busid: at most 31 letters, digits, and
// characters of "-.:_". Linux makes them like 3-1.4.
func CheckBusID(s string) error {
	if s == "" || len(s) >= BusIDSize {
		return fmt.Errorf("busid %q is not of 1 to %d characters", s, BusIDSize-1)
	}
	for _, c := range []byte(s) {
		switch {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		case c == '-', c == '.', c == ':', c == '_':
		default:
			return fmt.Errorf("busid %q holds the character %q", s, c)
		}
	}
	if s[0] == '.' {
		return fmt.Errorf("busid %q starts with a dot", s)
	}
	return nil
}
