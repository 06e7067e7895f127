// Package view is what a container sees of USB: its own devices in /sys and in
// /dev, and nothing that tells of others.
//
// [Cover] hides everything from a container before its first program runs, and a
// [View] then shows the devices that it has, as they come and go.
//
// # What is covered
//
// A list of what leaks would never be complete, so it is the other way round:
// empty file systems of type tmpfs lie over bus, class, block, dev, devices and
// module of the container's /sys, and only what is known to tell nothing is put
// back: the processors, the network devices of its own namespace, and the bus
// platform with vhci_hcd.0, which the stock tools look for, without its root hubs
// and with files that cannot be used; other devices of that bus are covered, those
// that come to it later are not, nor controllers that are made anew: [Open] does
// not take such a container. The files of a controller go over these: see
// container.BindController. Whatever the kernel adds to /sys later is covered as
// well. In /proc some directories and files are covered by empty ones.
//
// A device of the container's own is its real directory, bound where it is in the
// kernel's tree, so that libudev, which asks that a device be on a sysfs, takes
// it. The links to it in bus, class, block and dev are ours. Its root hub is no
// device of the container's: there is a plain directory with a copy of what lsusb
// prints of it.
//
// # Whole root hubs
//
// A container whose controller has one of the kernel's alone is shown the
// directories of both root hubs instead, once: what comes there appears by
// itself, and no mount is made for a device. That is this view with another list
// of what is put back, and no second kind of mask: the links in bus, class and
// dev name all devices of the machine and are ours there as well, and so are the
// nodes, which wait for the guard. The hubs themselves have no nodes.
//
// # Nodes
//
// The nodes of a device have the names that the kernel gives them, and one more
// that stays the same when the device comes again: usbns/PORT/, and then the
// interface and the kind of node, as in usbns/0/1.0-hidraw. The container's guard
// allows a number before there is a node of it. They are for the owner of the
// controller, mode 0660, and so are sockets: see [View.Listen].
//
// # Whom it trusts
//
// What is mounted in a container can be changed by whoever is root in the user
// namespace that owns its mounts. So Cover must come before that namespace is
// entered: what was mounted then is locked. What a View mounts later may be
// unmounted by such a container, and then what is covered lies open: nothing.
// Names in the container are looked up beneath directories that were opened once
// and were found to be ours, by a thread that has gone into the container's mount
// namespace.
//
// What such a container has mounted there may be a directory of the host's. In
// /dev nothing is made, given away or removed that is on another file system; in
// /sys it is links, and copies of a root hub's files, each by its name.
//
// # Dead ends
//
// A tmpfs in the place of a device is no device to libudev. A device's directory
// that is bound once is stale when the device comes again: it is bound anew. A
// mount cannot be cloned from one that is mounted nowhere before Linux 6.15, so
// what is put back is cloned before it is covered.
package view
