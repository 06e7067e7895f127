// Package uevent hears the kernel's events of devices, and tells others of
// events, in a network namespace.
//
// [Listen] hears what the kernel tells in the network namespace of the caller.
// Anybody who is root there can send messages that look the same, so only those
// that come from the kernel count. A [Sender] tells the listeners of another
// namespace, one that the kernel keeps silent in: as the kernel would, and as
// udev would once it has dealt with an event.
//
// # Who hears what
//
// The kernel tells its events in every network namespace that the initial user
// namespace owns, whatever container is in it, and in no other. A container that
// is not to hear of its neighbours' devices needs a network namespace that a
// user namespace of its own owns.
//
// # What it is not
//
// It keeps no devices: an event can be lost, and whoever listens looks at /sys
// again after [ErrLost].
//
// # Dead ends
//
// A message to the kernel is told on in its namespace, and seems to come from the
// kernel, only if it asks for an acknowledgement; otherwise it is dropped without
// a word. One with a SEQNUM is refused: the kernel adds its own. libudev does
// not listen to the kernel where it thinks that udev runs, but to messages with a
// header of its own. It takes either only from root as it knows it: the user must
// be given with the message, also to the kernel, which tells it on.
package uevent
