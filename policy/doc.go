// Package policy is the USB firewall: it judges a device by its descriptors
// before anything of this machine uses it.
//
// A [Policy] says which classes of functions a device may have, and which
// devices are let in or kept out whatever they are. Every configuration and
// every alternate setting of a device counts, and the class of the device
// itself: a disk that hides behind a second configuration is a disk. What may
// be any of several classes must be allowed as all of them.
//
// The defaults of a controller whose devices reach the kernel keep out what the
// host itself would act on: network interfaces, which its network manager takes
// up; disks, whose tables it reads and whose file systems it parses; hubs,
// behind which more devices would appear; Bluetooth; and what can type, which
// is a keyboard of the host's console too. [Host] says whether a host is safe
// from those.
//
// # What can type
//
// A HID interface is a keyboard unless its report descriptor proves otherwise.
// The proof is an allow-list: all of its usages lie on pages that Linux makes no
// dangerous keys of (drivers/hid/hid-input.c), a digitizer's or a mouse's for
// instance. Consumer control and system control count as keyboards, for they
// turn machines off. For the proof to hold, the kernel must be served the very
// report descriptor that was judged, as usb.Descriptors.Answer does, and its
// driver must be the generic one. hid-asus makes KEY_SLEEP of a vendor's usage
// that is nothing otherwise; so most drivers that claim a HID device by its
// numbers count as well, see below. The console decides whether it listens to a
// device when that comes.
//
// # What it is not
//
// A policy believes what the device says. It keeps a device from doing what
// other devices do, not from lying about its vendor, product and serial number:
// whoever allows 1234:5678 allows anyone who claims these numbers, as whatever
// class. Nor does it find faults in the drivers of allowed classes.
//
// Who has the evdev node of a device can make another key of each of its buttons
// (EVIOCSKEYCODE), the power key too: seen on 6.12. The console does not listen to
// it then. A host's program does that looks at devices again: logind to what udev
// has tagged, if the host runs udevadm trigger after that.
//
// # Drivers that claim numbers
//
// Many of Linux's drivers claim a device by its numbers alone (USB_DEVICE of
// include/linux/usb.h): what calls itself a smart card reader and has the numbers
// of a network cable is a network interface, of the driver cdc_subset, seen on
// 6.12. [Host.Claims] finds such drivers in what depmod has written of the
// kernel's modules, and tells by where they are in the kernel's tree what they
// make of a device. Drivers that are built in, that come from elsewhere, or that
// were told of more numbers (new_id) are not found. Where depmod has not written
// anything no driver is: devices are let in all the same, since a machine whose
// kernel has no modules could use none, and [Host.ClaimsKnown] says so.
//
// # Dead ends
//
// modules.builtin.modinfo has the aliases of drivers that are built in, but those
// that come from tables of numbers only since Linux 6.18: on 6.12 and 6.1 it has
// none of USB, whatever is built in.
package policy
