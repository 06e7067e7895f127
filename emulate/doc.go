// Package emulate makes USB devices of Go code, which hosts take for real ones:
// the drivers of a stock kernel bind to them, over USB/IP or wherever a
// [usb.Device] can go.
//
// Some are ready made, by name with [Open] or by their constructors:
//
//	scanner      bar-code scanner, a HID keyboard      [Scanner]
//	signpad      signature pad, a HID pen              [Signpad]
//	fingerprint  fingerprint reader, vendor class      [Fingerprint]
//	serial       serial adapter that echoes, CDC-ACM   [Serial]
//	disk         bulk-only mass storage                [Disk]
//	audio        sound card that records what it plays [Audio]
//	loopback     echo for tests, vendor class          [Loopback]
//
// A device of one's own is a [Description] of what it says of itself and a
// [Handler] for each of its endpoints; [New] adds what every device must do by
// chapter 9 of the USB specification: descriptors, configurations, settings,
// halts and the refusal of what it does not know. The example of the package is
// such a device in full.
//
// # How a device works
//
// A [Device] is a machine that does one thing at a time. It keeps a queue of
// transfers for each endpoint, and hands the first of a queue to the endpoint's
// handler. If the handler says that it is not done, the transfer stays: that is
// the NAK of a real device, which has no data yet or no room. When there is,
// [Device.Wake] has the handler tried again.
//
// So handlers share what they know of the device without locks. Only what
// methods of one's own device bring in from outside needs a lock: take it in
// the method and in the handlers, and let go of it before Wake, which may run a
// handler, and the Complete function of a transfer, before it returns.
//
// A handler sees transfers, not packets. The end of an OUT transfer that is a
// multiple of the packet size is not visible on a bus; a device for which that
// matters looks at [usb.FlagZeroPacket], as [Loopback] does.
//
// Nothing here waits for the frames of a bus: a transfer moves as soon as both
// sides are ready, an interrupt endpoint is not held to its interval. Only the
// streams of [Audio] keep time.
//
// # What it is not
//
// It does not judge what a host does, and it is no simulator of faults: a
// misbehaving device for tests of the other side is easier made of a
// [usb.Device] of its own. Package emulatetest holds the rules that all devices
// keep, as tests that can be run against any [usb.Device].
//
// # Dead ends
//
// A goroutine for each endpoint, reading transfers from a channel, reads well
// but costs two stacks a device that does nothing, and every transfer two
// switches of goroutine. A lock for each endpoint instead of one machine would
// let handlers of one device run at the same time, but then every device needs
// locks of its own, taken in one order by the way in and in the other by the way
// out.
//
// Completing transfers straight from Submit without a queue overflows the stack
// when Complete submits again. With the queue, and unbounded work in Submit, the
// first submitter may never return; so after a number of transfers the rest is
// left to a goroutine that ends with the work.
package emulate
