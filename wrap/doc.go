// Package wrap holds devices around a device. Each takes a [usb.Device] and is
// one, so that they can be put one around another.
//
// A [Shield] stands between the device of a stranger and a kernel. The kernel's
// USB stack trusts those it talks to with its time: while the hub thread waits
// for an answer, other ports of its controller wait as well, and a transfer that
// was unlinked but is not given back blocks whoever unlinked it for good. Behind
// a Shield these waits end by themselves:
//
//   - Requests for descriptors are answered from memory, with those that were
//     checked and judged. The device cannot show the kernel others later.
//   - The two requests that the hub thread makes of a device at super speed on
//     top of that, SET_SEL and SET_ISOCH_DELAY, are answered as well: they tell
//     of a link that ends at the exporter.
//   - A transfer that is cancelled completes at once. What the device makes of it
//     is nobody's business then: it keeps the buffer, if the submitter allows that
//     (MayKeep of [usb.URB]), and else has had one of its own.
//   - Any other control transfer on endpoint 0 ends after a deadline, as if it
//     had been cancelled, but with -ETIMEDOUT.
//
// The price is that a transfer which the device had just finished when it was
// cancelled is lost, and a copy of the data where the buffer may not be kept.
//
// # What it is not
//
// It does not judge a device, and looks into no transfer. Transfers to other
// endpoints take the time they take: a driver of the kernel that waits for one
// sets a time itself, and cancels.
//
// # Dead ends
//
// Copying all data, so that no submitter need give up a buffer, took a sixth of a
// worker's time with transfers of 64 KiB.
//
// A timer for each control transfer costs more than the transfer. They end in
// the order in which they began, so one for the oldest is enough.
package wrap
