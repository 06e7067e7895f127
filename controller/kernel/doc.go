//go:build linux

// Package kernel is the driver of controllers whose devices the kernel has: it
// leases a port of the real vhci_hcd for each, so that all of Linux's drivers
// work on them.
//
// Controllers share the kernel's ports. Which one a device got shows in its
// place in sysfs and nowhere else.
//
// An exclusive controller shares nothing: [Driver.Reserve] gives it one of the
// kernel's controllers whole, both hubs, from its creation to its deletion. There
// are as many of these as the kernel was built with, 8 on Debian. Devices are
// checked and held back there as anywhere.
//
// # Checked devices
//
// The kernel never talks to a stranger. The controller's worker (package worker)
// enumerates a device first, and what it says of itself is checked and judged
// here. Then a port is leased, and the worker serves the device to the kernel
// over one end of a socketpair. The device is not authorized, so that no driver
// has it, until Plug.Ready has returned.
//
// Nothing of that is in this process: when it ends, orderly or not, devices go on
// working, and [Driver.Restore] finds them again. [Driver.Sweep] ends those that
// nobody wanted back.
//
// # Direct devices
//
// [Driver.Direct] is for exporters one trusts: it hands the connection to the
// kernel, with nothing of ours in the path. Nobody can enumerate the device
// before, since its answers to the kernel's questions and to ours would be on
// one connection; what is judged is what the kernel has read. A device that does
// not answer can hold up the other ports of its kernel controller.
//
// # Letting go
//
// The file detach is never written to a port whose device may have changed.
// Both kinds of devices end by their socket: the worker closes its end of the
// socketpair, or the connection is shut down by the duplicate that was kept. The
// kernel then lets go by itself, and can only let go of what was on that socket.
//
// A lease ends when the kernel's port is free and the device has left sysfs,
// which is later.
//
// # What it is not
//
// It never touches a port that is in use and that it has not leased itself: root
// can go on using the stock tools beside it. But the root hubs get
// authorized_default=0, so what these attach has to be authorized by hand.
//
// # Dead ends
//
// The kernel tells nobody that a port goes from 005 to 006 or 004. Uevents tell
// of the device that comes and goes a moment before or after, so the files are
// read again at each; and, since uevents can be lost or not be there, at times
// that lie further and further apart.
package kernel
