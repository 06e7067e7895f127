package usb

// A DeviceDescriptor is the first thing a device says of itself (USB 2.0,
// table 9-8).
type DeviceDescriptor struct {
	USB                       uint16 // bcdUSB: 0x0200, 0x0320
	Class, SubClass, Protocol uint8
	MaxPacket0                uint8 // a power of two at super speed
	Vendor, Product           uint16
	Version                   uint16 // bcdDevice
	ManufacturerString        uint8
	ProductString             uint8
	SerialString              uint8
	NumConfigurations         uint8
}

// A Configuration is one of the sets of interfaces a device can be put to
// (USB 2.0, table 9-10, and what follows it up to wTotalLength).
type Configuration struct {
	Value      uint8
	String     uint8
	Attributes uint8
	MaxPower   uint8
	Interfaces []Interface
	// Raw is the whole descriptor as the device gave it, class descriptors
	// included, cut to wTotalLength. It must not be changed.
	Raw []byte
}

// An Interface is one function of a configuration, or a part of one.
type Interface struct {
	Number     uint8
	Alternates []Alternate // at least one; setting 0 is the default, without it the first
}

// An Alternate is one setting of an interface (USB 2.0, table 9-12).
type Alternate struct {
	Setting                   uint8
	Class, SubClass, Protocol uint8
	String                    uint8
	Endpoints                 []Endpoint
	// Extra is what followed the interface descriptor up to the first
	// endpoint: class descriptors.
	Extra []byte
}

// An Endpoint is where transfers go (USB 2.0, table 9-13; the companion: USB
// 3.2, table 9-27).
type Endpoint struct {
	Address    Address
	Type       TransferType
	Attributes uint8
	MaxPacket  uint16 // wMaxPacketSize with the bits for more transactions
	Interval   uint8
	// Burst, Companion and BytesPerInterval are the super speed companion's
	// bMaxBurst, bmAttributes and wBytesPerInterval; 0 where there is none.
	Burst, Companion uint8
	BytesPerInterval uint16
}

// Raw is a device's descriptors as bytes: what travels between processes, and
// what [NewDescriptors] checks.
type Raw struct {
	Device         []byte
	Configurations [][]byte
	BOS            []byte      `json:",omitempty"`
	Strings        []RawString `json:",omitempty"`
	Reports        []RawReport `json:",omitempty"`
}

// A RawString is a string descriptor in one language. Index 0, language 0 is
// the list of languages.
type RawString struct {
	Index  uint8
	LangID uint16
	Data   []byte
}

// A RawReport is the report descriptor of an interface of the HID class in the
// first configuration.
type RawReport struct {
	Interface uint8
	Data      []byte
}

// Descriptors is all a device says of itself, checked: every length lies
// within its buffer, every endpoint exists once a setting (the first, where a
// device lists it twice), every configuration value is distinct. It is immutable and safe for concurrent use.
type Descriptors struct {
	device  DeviceDescriptor
	configs []Configuration
	raw     Raw
}

// Device returns the device descriptor.
func (d *Descriptors) Device() DeviceDescriptor { return d.device }

// Configurations returns the configurations, at least one, in the order of their
// index. They must not be changed.
func (d *Descriptors) Configurations() []Configuration { return d.configs }

// Configuration returns the configuration of that value, nil if there is none.
func (d *Descriptors) Configuration(value uint8) *Configuration {
	for i := range d.configs {
		if d.configs[i].Value == value {
			return &d.configs[i]
		}
	}
	return nil
}

// Raw returns the descriptors as bytes, which must not be changed.
func (d *Descriptors) Raw() Raw { return d.raw }

// Manufacturer, Product and Serial are the device's strings in its first
// language, "" where it has none.
func (d *Descriptors) Manufacturer() string { return d.String(d.device.ManufacturerString) }
func (d *Descriptors) Product() string      { return d.String(d.device.ProductString) }
func (d *Descriptors) Serial() string       { return d.String(d.device.SerialString) }
