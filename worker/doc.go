//go:build linux

// Package worker is the process between remote devices and the kernel.
//
// A worker has the connections to the exporters of one controller's devices, and
// serves each device to the kernel over one end of a socketpair, behind a
// wrap.Shield. It outlives the daemon that started it, so devices keep working
// while there is none, and a new daemon finds it by its socket. It ends when it
// has no device left and no daemon is connected.
//
// The daemon's side is a [Client]: [Start] makes a process of the same binary
// whose argv[0] is [Name], and [Open] finds one that runs. The process's side is
// [Main].
//
// # The sandbox
//
// What a worker reads comes from strangers, so it is taken to be theirs already.
// Started by root, it is user 65534 in an empty root and in namespaces of its own
// for mounts, networks, IPC and host names, with no capabilities and no way to
// gain some. However it was started, a seccomp filter leaves it what the Go
// runtime and open sockets need: it can open nothing, connect nowhere, start
// nothing and signal nobody. If any of this cannot be put in place there is no
// worker.
//
// The daemon for its part believes nothing a worker tells: messages are bounded,
// each answer has a deadline, descriptors are checked again, and a message that
// is not the answer to a question or the end of a device ends the worker. When a
// worker ends, so do its devices. What it wrote until then, a panic for instance,
// is read from a pipe when it has ended: never by the daemon that found it, to
// whom nobody can give the pipe.
//
// # The wire
//
// One message is one packet of a SOCK_SEQPACKET socket: a JSON object, and with
// it one descriptor where the request has one. The daemon numbers requests and
// devices; answers have the number of their request, events have 0. The first
// request is hello, whose answer has the version of all this and what the worker
// holds. The daemon makes the socket, in a directory of its own, but the worker
// listens on it: so the credentials that the kernel tells of the socket are the
// worker's.
//
// # Speed
//
// A process on the way adds two wake-ups to each round trip, and has the kernel
// copy all data twice more. With a device of the timing of high speed that is hardly
// seen: a worker reaches 0.85 to 1 of the rate of a connection that was handed over.
// With a device that takes no time it is 0.85 with one control transfer in flight,
// 0.75 with 32, and 0.3 to 0.45 with data of 64 KiB, where the worker and the one that
// stands for the kernel share one CPU and the exporter has another. That is the
// price of any process on the way: one that copies bytes from one socket to the
// other, and does not know what they are, has the same rates. Descriptors do not go
// the way at all: the worker answers with those that were judged, several times
// quicker than the device could.
//
// The exporter's and the kernel's end take turns, so a second CPU is for the most
// part woken to find nothing to do: on one, bulk data costs a fifth less, and small
// transfers are not slower. Each worker has its own.
//
// # Dead ends
//
// A worker cannot be told to die with the daemon's devices when the daemon is
// killed, by PR_SET_PDEATHSIG or a pipe: to go on is what it is for.
//
// Having the kernel move data past the worker, by splice(2), makes a bare relay of
// 64 KiB at a time a tenth quicker, and one of small transfers three times slower:
// each goes through a pipe. Sending a batch off in parts, so that the next process
// begins earlier, wakes it more often than it gains.
//
// A user namespace would let a daemon without root build the empty root as well,
// but only root can give devices to the kernel.
package worker
