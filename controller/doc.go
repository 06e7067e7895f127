// Package controller holds USB/IP host controllers that no kernel knows of, the
// rules of their ports, and what can stand behind a port.
//
// A [Table] has the controllers of a machine, a [Controller] has ports like
// those of vhci_hcd.N: first one for each port of its high speed hub, then as
// many for super speed. What a user plugs into one, a [Plug], is a connection
// past IMPORT or a usb.Device. The controller's [Driver] makes an [Attachment]
// of it. [User] is the driver that keeps devices in user space. An exclusive
// controller has a host controller of the kernel's alone, which a [Reserver]
// gives it.
//
// # Rules
//
// The rules and error numbers of a port are the kernel's
// (drivers/usb/usbip/vhci_sysfs.c), so that the stock tools work on files made
// of a Controller: the speed chooses the half, EINVAL is a port or speed that
// does not exist, EBUSY a port that is in use. The kernel talks to a device
// after attach has returned; here that is over before, and Attach fails with a
// number of its own if the device is not fit. See [Error].
//
// Each device is judged by the controller's policy before it is used.
//
// What a driver can find again after the process has ended it saves as a few
// bytes. A Table hands them to Save before such a device is let in, and Restore
// makes controllers and attachments again.
//
// A controller knows its own numbers only. A device's busid is made of bus 1 or
// 2 and the port, whatever other controllers hold.
//
// An empty controller is one small allocation; the table of its ports is made
// with the first attach. Status is answered from memory. An attachment costs one
// goroutine, which frees the port when the device goes.
//
// # What it is not
//
// It serves no files and no sockets, takes no descriptors from other processes,
// decides on no rights, and has no disk.
//
// # Dead ends
//
// EBUSY for anything but a port that the status shows in use makes the stock
// tool read the status, find the same port free, and try again for ever. So a
// second attach beside one that still runs is EAGAIN, and what a driver fails
// with never becomes EBUSY.
package controller
