package usb

import (
	"encoding/binary"
	"fmt"
)

// Speed is the signalling rate of a device, numbered as enum usb_device_speed.
type Speed uint8

// The speeds. Wireless is only ever seen on the wire.
const (
	SpeedUnknown Speed = iota
	SpeedLow
	SpeedFull
	SpeedHigh
	SpeedWireless
	SpeedSuper
	SpeedSuperPlus
)

var speedNames = [...]string{"unknown", "low", "full", "high", "wireless", "super", "super-plus"}

func (s Speed) String() string {
	if int(s) < len(speedNames) {
		return speedNames[s]
	}
	return fmt.Sprintf("speed %d", uint8(s))
}

// Valid reports whether s is one of the speeds a device can have.
func (s Speed) Valid() bool { return s > SpeedUnknown && s <= SpeedSuperPlus }

// Super reports whether s needs a port of the super speed half of a controller.
func (s Speed) Super() bool { return s >= SpeedSuper }

// Address is an endpoint address: its number, with DirIn for IN endpoints.
type Address uint8

// DirIn is the direction bit of endpoint addresses and request types.
const DirIn = 0x80

// Number is the endpoint number, 0 to 15.
func (a Address) Number() int { return int(a & 0x0f) }

// In reports whether the endpoint sends data to the host.
func (a Address) In() bool { return a&DirIn != 0 }

func (a Address) String() string {
	if a.In() {
		return fmt.Sprintf("endpoint %d IN", a.Number())
	}
	return fmt.Sprintf("endpoint %d OUT", a.Number())
}

// index places the 32 endpoint addresses in an array.
func (a Address) index() int { return int(a>>3&0x10 | a&0x0f) }

// TransferType is one of USB's four kinds of transfer, numbered as in
// bmAttributes of an endpoint descriptor (USB 2.0, table 9-13).
type TransferType uint8

// The transfer types.
const (
	Control TransferType = iota
	Isochronous
	Bulk
	Interrupt
)

var typeNames = [...]string{"control", "isochronous", "bulk", "interrupt"}

func (t TransferType) String() string {
	if int(t) < len(typeNames) {
		return typeNames[t]
	}
	return fmt.Sprintf("transfer type %d", uint8(t))
}

// Setup is the setup packet of a control transfer (USB 2.0, section 9.3).
type Setup struct {
	RequestType uint8
	Request     uint8
	Value       uint16
	Index       uint16
	Length      uint16
}

// ParseSetup decodes a setup packet from its eight bytes on the bus.
func ParseSetup(b [8]byte) Setup {
	return Setup{
		RequestType: b[0],
		Request:     b[1],
		Value:       binary.LittleEndian.Uint16(b[2:]),
		Index:       binary.LittleEndian.Uint16(b[4:]),
		Length:      binary.LittleEndian.Uint16(b[6:]),
	}
}

// Bytes encodes s as it travels on the bus.
func (s Setup) Bytes() (b [8]byte) {
	b[0], b[1] = s.RequestType, s.Request
	binary.LittleEndian.PutUint16(b[2:], s.Value)
	binary.LittleEndian.PutUint16(b[4:], s.Index)
	binary.LittleEndian.PutUint16(b[6:], s.Length)
	return b
}

// In reports whether the data stage runs to the host.
func (s Setup) In() bool { return s.RequestType&DirIn != 0 }

// Is reports whether s is the standard, class or vendor request given by the
// full request type and request bytes.
func (s Setup) Is(requestType, request uint8) bool {
	return s.RequestType == requestType && s.Request == request
}

func (s Setup) String() string {
	return fmt.Sprintf("request %02x/%02x value %04x index %04x length %d",
		s.RequestType, s.Request, s.Value, s.Index, s.Length)
}

// Parts of a request type: data direction is DirIn, then kind and recipient.
const (
	KindStandard = 0x00
	KindClass    = 0x20
	KindVendor   = 0x40

	ToDevice    = 0x00
	ToInterface = 0x01
	ToEndpoint  = 0x02
	ToOther     = 0x03

	KindMask      = 0x60
	RecipientMask = 0x1f
)

// Standard requests (USB 2.0, table 9-4; USB 3.2, table 9-5).
const (
	ReqGetStatus        = 0x00
	ReqClearFeature     = 0x01
	ReqSetFeature       = 0x03
	ReqSetAddress       = 0x05
	ReqGetDescriptor    = 0x06
	ReqSetDescriptor    = 0x07
	ReqGetConfiguration = 0x08
	ReqSetConfiguration = 0x09
	ReqGetInterface     = 0x0a
	ReqSetInterface     = 0x0b
	ReqSynchFrame       = 0x0c
	ReqSetSEL           = 0x30
	ReqSetIsochDelay    = 0x31
)

// Feature selectors (USB 2.0, table 9-6), and the hub class's PORT_RESET
// (table 11-17), which is how USB/IP carries the reset of a device.
const (
	FeatureEndpointHalt       = 0
	FeatureDeviceRemoteWakeup = 1
	FeaturePortReset          = 4
)

// Descriptor types (USB 2.0, table 9-5; USB 3.2, table 9-6).
const (
	DescDevice               = 0x01
	DescConfiguration        = 0x02
	DescString               = 0x03
	DescInterface            = 0x04
	DescEndpoint             = 0x05
	DescDeviceQualifier      = 0x06
	DescOtherSpeedConfig     = 0x07
	DescInterfaceAssociation = 0x0b
	DescBOS                  = 0x0f
	DescDeviceCapability     = 0x10
	DescSSEndpointCompanion  = 0x30
)

// GetDescriptor is the setup packet that asks for a descriptor.
func GetDescriptor(kind, index uint8, langID, length uint16) Setup {
	return Setup{DirIn, ReqGetDescriptor, uint16(kind)<<8 | uint16(index), langID, length}
}

// SetConfiguration is the setup packet that chooses a configuration; 0 leaves
// the device unconfigured.
func SetConfiguration(value uint8) Setup {
	return Setup{0, ReqSetConfiguration, uint16(value), 0, 0}
}

// SetInterface is the setup packet that chooses an alternate setting.
func SetInterface(iface, alternate uint8) Setup {
	return Setup{ToInterface, ReqSetInterface, uint16(alternate), uint16(iface), 0}
}

// ClearHalt is the setup packet that makes a stalled endpoint work again.
func ClearHalt(a Address) Setup {
	return Setup{ToEndpoint, ReqClearFeature, FeatureEndpointHalt, uint16(a), 0}
}

// PortReset is the request that stands for a reset of the device on the wire:
// SetPortFeature(PORT_RESET), which a device itself never sees.
func PortReset() Setup {
	return Setup{KindClass | ToOther, ReqSetFeature, FeaturePortReset, 0, 0}
}
