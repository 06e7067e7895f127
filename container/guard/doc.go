// Package guard keeps a container from opening USB devices that are not its own,
// whatever nodes it has or makes: with a device program on its cgroup.
//
// [Attach] puts a guard on a cgroup of version 2, or finds the one that an
// earlier daemon left there. It refuses every device of the classes that USB
// devices come in (usbfs, hidraw, input, serial, disks, video, sound, ...), to
// open it and to make a node of it, but those that were allowed by [Guard.Allow].
// It takes effect for what is opened from then on; what is open stays open.
// About other classes the container's runtime decides as before: all programs on
// a cgroup have to agree.
//
// Classes without a fixed major number are found by name in /proc/devices.
// Numbers that nobody has registered yet are refused as well until they are
// known to be something else, since the next to register one may be hidraw.
//
// # Whose it is
//
// The program belongs to the cgroup, not to this process: when that ends, the
// container still cannot open what it was not allowed to. It goes with the
// cgroup and never before. A Guard that finds it allows nothing at first: a
// number that was allowed may be another device's by now.
//
// # Beside a runtime's program
//
// Where the runtime attached its program for several to stand side by side
// (BPF_F_ALLOW_MULTI, as runc, crun, LXC and systemd do), ours is one more.
// Otherwise the kernel takes no second one, and ours takes the place of the
// first with the first's rules behind its own. A runtime that changes the
// container's rules may throw out what it does not know; no event tells of
// that. So whoever has the guard calls [Guard.Check] when devices come and go.
//
// # What it is not
//
// It cannot take an open device away: the device has to go. It does not know
// whose a device is. It leaves displays (drm, fb) to the runtime, since a graphics
// card of the machine is what containers are given, although there are some for
// USB.
//
// # Dead ends
//
// A tail call to the program that was there needs a map which the kernel empties
// when the last process that has it open ends, and then refuses everything. A
// link of BPF goes with the process as well, or leaves a pin behind in bpffs when
// the container goes first.
package guard
