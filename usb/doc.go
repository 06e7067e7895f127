// Package usb holds the words of USB that the rest of usbns speaks: speeds,
// setup packets, descriptors, URBs, and the one interface everything is built
// from, [Device].
//
// A Device takes URBs and completes them. Sources make Devices: a remote one
// (package usbip), one made of Go (package emulate). Wrappers are Devices
// around a Device. Sinks use Devices: an exporter that offers them to other
// machines, a controller that gives them to a container. Data runs one way,
// source to wrappers to sink, and because every piece meets the next one as a
// Device, any source fits any sink and each can be tested with a fake on either
// side.
//
// # The life of a URB
//
// A sink fills a [URB] and calls Submit, which never blocks. If Submit returns
// an error nothing else happens. Otherwise the Device owns the URB and its
// Buffer until it calls Complete, exactly once, from any goroutine and with no
// lock held; possibly before Submit has returned. Complete must not block, and
// may submit the same URB again. Cancel asks for an early completion, and tells
// nothing: the Status at Complete does.
//
// URBs of one endpoint complete in the order of their submission. Nothing is
// promised between endpoints.
//
// [Do] and [ControlTransfer] are the blocking calls for programs that want no more than
// an answer.
//
// # Numbers
//
// Status values are negated Linux errno numbers on every operating system,
// because that is what travels on the USB/IP wire and what every existing peer
// understands (Documentation/driver-api/usb/error-codes.rst in the kernel).
// Speeds are those of enum usb_device_speed (include/uapi/linux/usb/ch9.h).
// Everything else is numbered as in chapter 9 of the USB 2.0 and 3.2
// specifications. Multi-byte fields are little-endian on the bus.
//
// # What it is not
//
// It is no host stack: there are no hubs, no drivers and no scheduling of
// bandwidth here, and no access to the machine's own devices. It does no I/O
// besides what a Device does, logs nothing, and has no globals that change.
//
// # Dead ends
//
// Deriving a transfer's type from the wire does not work: USB/IP does not carry
// it, and number_of_packets lies (Linux sends whatever the URB happened to hold,
// some servers send -1). The descriptors and the two requests that change what
// they mean are the only truth; [Endpoints] keeps it for all who need it.
//
// A channel per URB for its completion costs an allocation and a wake-up per
// transfer; with a callback the goroutine that read the answer can hand it on
// itself, which halves the time of a round trip.
package usb
