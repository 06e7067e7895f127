// Package box runs a command in namespaces of its own, where it sees no USB
// devices but those that it is given: what is behind "usbns run".
//
// Its root is the machine's, with a /dev, /sys, /proc and /run of its own, so it
// is a place for devices and no place for programs that one does not trust: root
// in it, without a user namespace, is root of the machine's files. It has the
// capabilities that Docker gives, and thus cannot change mounts.
//
// The kernel's log tells of all devices. With kernel.dmesg_restrict=1, Debian's
// default, a box cannot read it.
//
// # How it is made
//
// [Start] starts this program again as the first process of the box, with
// [InitName] as its name. That covers everything, see package view, and then
// waits: nothing of the box's own runs before [Box.Run], so whoever has started
// it can have its devices guarded first. The command runs in a mount namespace
// below that of the first process, which outlives it. So what is mounted in the
// first one later, from outside, spreads to the command, and where the command
// has a user namespace it cannot unmount it.
//
// The network namespace is owned by a user namespace that nothing runs in. The
// kernel tells its events of devices in those of the initial user namespace
// only, whoever is in them.
//
// # How it ends
//
// With its command, or with the process that started it: the first process sees
// that its pipe is closed and ends, and everything in its process namespace with
// it.
package box
