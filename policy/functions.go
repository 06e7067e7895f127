package policy

import (
	"fmt"

	"github.com/usbns/usbns/usb"
)

// A function is what a device can be used for, with all the classes it may be
// taken for.
type function struct {
	where   string // "as a whole", "in interface 1"
	classes Classes
}

// functions returns everything a device may turn out to be, in the order of its
// descriptors.
func functions(d *usb.Descriptors) []function {
	var list []function
	dev := d.Device()
	switch dev.Class {
	case classOfInterfaces, classMisc, classCDC: // its interfaces say what it is
	default:
		list = append(list, function{"as a whole", classesOf(dev.Class, dev.SubClass, dev.Protocol, nil)})
	}
	for index, c := range d.Configurations() {
		for _, i := range c.Interfaces {
			var report []byte
			if index == 0 && !shifts(dev) {
				report = d.Report(i.Number)
			}
			for _, a := range i.Alternates {
				list = append(list, function{
					fmt.Sprintf("in interface %d", i.Number),
					classesOf(a.Class, a.SubClass, a.Protocol, report),
				})
			}
		}
	}
	return list
}

// Class codes (usb.org, Defined Class Codes).
const (
	classOfInterfaces = 0x00
	classAudio        = 0x01
	classCDC          = 0x02
	classHID          = 0x03
	classImage        = 0x06
	classPrinter      = 0x07
	classStorage      = 0x08
	classHub          = 0x09
	classCDCData      = 0x0a
	classSmartCard    = 0x0b
	classVideo        = 0x0e
	classAudioVideo   = 0x10
	classWireless     = 0xe0
	classMisc         = 0xef
	classVendor       = 0xff
)

// classesOf returns all that a device or an interface of those codes may be.
func classesOf(class, subclass, protocol uint8, report []byte) Classes {
	switch class {
	case classAudio:
		return of(Audio)
	case classCDC:
		return cdc(subclass, protocol)
	case classCDCData:
		// The other half of a CDC function, whose first half tells which.
		return 0
	case classHID:
		if report == nil || canType(report) {
			return of(HID, Keyboard)
		}
		return of(HID)
	case classImage:
		return of(Image)
	case classPrinter:
		return of(Printer)
	case classStorage:
		return of(Storage)
	case classHub:
		return of(Hub)
	case classSmartCard:
		return of(SmartCard)
	case classVideo:
		return of(Video)
	case classAudioVideo:
		return of(Audio, Video)
	case classWireless:
		return wireless(subclass, protocol)
	case classMisc:
		if subclass == 0x01 || subclass == 0x04 { // ActiveSync and RNDIS, both for Linux's rndis_host
			return of(Network)
		}
		return of(Other)
	case classVendor:
		return of(Vendor)
	}
	return of(Other)
}

// cdc tells the functions of the communication device class apart (CDC 1.2,
// table 4). What is neither a modem nor a control channel is taken for a network
// interface, and so is a modem with a protocol of the vendor's: RNDIS.
func cdc(subclass, protocol uint8) Classes {
	switch subclass {
	case 0x02:
		if protocol == 0xff {
			return of(Network)
		}
		return of(Serial)
	case 0x08, 0x09, 0x0b: // wireless handset control, device management, OBEX
		return of(Serial)
	}
	return of(Network)
}

// wireless tells Bluetooth from RNDIS and radio control (usb.org, base class
// E0h).
func wireless(subclass, protocol uint8) Classes {
	if subclass == 0x01 && (protocol == 0x01 || protocol == 0x04) {
		return of(Bluetooth)
	}
	return of(Network, Bluetooth)
}
