// Package vhci drives a USB/IP host controller through the files of its
// directory, vhci_hcd.N: what the driver half of libusbip (vhci_driver.c) is in
// C. It opens a controller by index or by path, lists its ports, attaches a
// connected socket to one and detaches it, keeps the stock tools' records of
// what is attached where, and parses and prints the text of all those files to
// the letter.
//
// It works on three kinds of directory, and needs to know no difference:
//
//   - /sys/devices/platform/vhci_hcd.0 of a stock kernel: one directory for all
//     of the machine's controllers, their ports numbered through;
//   - a directory of usbns, RUNDIR/sys/devices/platform/vhci_hcd.N: one for each
//     controller, ports numbered from 0. So are those of the kernel patch of
//     2018 that usbns makes unnecessary;
//   - a temporary directory in a test, see [Sysfs] and package vhcitest.
//
// What tells them apart is arithmetic: nports divided by the lines of the first
// status file is the number of controllers behind the directory.
//
// # libusbip's functions and ours
//
//	usbip_vhci_driver_open           Open(0)
//	usbip_vhci_driver_open_ix        Open, Sysfs.Open
//	usbip_vhci_driver_open_path      OpenPath
//	usbip_vhci_driver_ix             Driver.Index
//	usbip_vhci_driver_close          Driver.Close
//	usbip_vhci_refresh_device_list   Driver.Ports, Driver.AllPorts: nothing is cached
//	usbip_vhci_get_free_port         Driver.FreePort
//	usbip_vhci_attach_device(2)      Driver.Attach
//	usbip_vhci_detach_device         Driver.Detach
//	usbip_status_string              Status.String
//	record_connection, read_record   Records.Write, Records.Read
//	imported_device_init             Driver.Device: the device's directory in sysfs
//
// The global variable vhci_driver has no counterpart: any number of Drivers can
// be open, and each is safe for concurrent use.
//
// # What the kernel does
//
// All of this is drivers/usb/usbip/vhci_sysfs.c, and was seen on Linux 6.1 and
// 6.12.
//
//   - The speed of an attach chooses the half of the controller, whatever half
//     the port was in: 5 (super) and up lands in the super speed half, the rest
//     in the other, at port modulo P. [Geometry.Landing] computes it.
//   - Attach returns when the port is at 005. It comes to 006, with a busid and
//     a device in sysfs, when the kernel has given the device an address, which
//     needs the peer's answers (at super speed the address comes first). Until
//     then the file does not tell whose port it is: the speed, devid, sockfd and
//     busid columns are zero.
//   - Detach only queues the work. Until it is done a second detach succeeds and
//     an attach to the port fails with EBUSY. The peer's closing of the
//     connection takes the same path. The socket is shut down, for all who have
//     it, and the port is free before the device is gone from sysfs: a moment as
//     a rule, seconds while the root hub waits for a device on another port.
//   - Who attaches in between, to a port that is free, has his device taken for
//     the one that is leaving if both say the same of themselves
//     (hub_port_connect_change in drivers/usb/core/hub.c): it inherits drivers
//     and authorization, gets no address, and the port stays at 005.
//     [Driver.FreePort] does not give such a port.
//   - The sockfd column is a number in the table of the process that attached.
//     It means nothing to anybody else. A port whose socket is already let go
//     but whose device is not can still be at 006, with -1 (4294967295).
//   - A controller that could not start because the machine is out of USB buses
//     (63, two a controller) still counts in nports. Its ports show 005 with a
//     sockfd of 16 digits, and never become free; attach and detach give EAGAIN.
//     Kernels without the fix for it ("usbip: vhci_hcd: fix NULL deref in
//     status_show_vhci", 2026) dereference NULL when such a status file is read,
//     which kills the reader: [Driver.Ports] looks for the controller's driver
//     link first, and does not read.
//   - Reading a status file takes the lock that the controller's interrupt work
//     needs, for the time of printing 30 lines. Read the controllers you need,
//     not all.
//
// # What it is not
//
// It dials nobody and speaks no USB/IP: the socket handed to Attach is past the
// import request (package usbip). It knows nothing of owners, leases or
// policies (package controller), and serves no files (package sysfs).
//
// # Dead ends
//
// An *os.File is the wrong thing to write a control file with. Files of sysfs
// and FUSE can be polled, so the runtime takes EAGAIN, the answer of a
// controller that is not ready or busy with another attach, for "not writable
// yet", and waits for an event that never comes: os.WriteFile to the detach of
// such a controller hangs. Control files are written with one plain system call.
//
// Finding controllers with libudev, as libusbip does, makes the directories of
// usbns impossible to open (they are not on a sysfs), and costs a walk of /sys
// for each program start.
//
// Counting the vhci_hcd.* directories to know how many status files there are,
// as libusbip does, is wrong wherever those directories and the files do not
// come from the same place, such as in a container.
//
// The text of kernels before 4.15 (at first no hub column, then a kernel address
// in place of the socket's number) is not understood.
package vhci
