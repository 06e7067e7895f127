// Package escape tries to reach another container's USB device from inside a
// container. It is the attacker that usbns is tested with.
//
// A [Case] is one way to list, open, hear of, detach or guess a device. [Run]
// tries all of them on a device of a neighbour, and those with Own set on the own
// one, and prints a [Result] a line. The attacker knows everything beforehand, bus
// and node numbers, port, serial number, inode, names, so that nothing is safe
// only because it is hard to guess: see [Target].
//
// A case is worth as much as its eyes. Two things guard against a suite that
// finds nothing because it is blind: cases with Own set must succeed on the own
// device, and on a machine without any protection nearly all must succeed on the
// neighbour's, which the guest tests of this package check.
//
// # How it works
//
// Everything happens in a process of its own inside the container, the program
// itself under the name usbns-escape (see [Main]), with a [Known] as JSON on its
// standard input. A case that needs namespaces of its own runs in a child that
// has them. A case that does not end is given up. What is mounted or made on the
// way is in a mount namespace or a directory that goes with the process; only
// cases with Harms set leave marks, they detach, and come last.
//
// Where the attempt itself would harm the machine, the right to do it counts as
// success: a control file that can be opened for writing, a module whose text the
// kernel starts to read.
//
// # What a container alone keeps apart
//
// Tried with Debian 12's LXC, runc and crun and two devices attached to the
// kernel. All of them show every device in sysfs, in /proc/bus/input, and in
// status; without a user namespace the uevents of all as well. Nodes are refused
// by the device programs of the runtimes. But LXC without a user namespace leaves
// its containers the right to detach that program from their cgroup and then to
// open every device, to read the kernel's log, to undo masks and to load programs
// into the kernel. Nothing that usbns mounts can hold such a container.
//
// # What it is not
//
// No proof of safety: it knows the ways its authors knew. It does not exploit
// faults of the kernel, and it measures no time. Keyrings are left out, usbns
// keeps nothing there.
package escape
