// Package sysfs serves the control files of controllers through FUSE: what a
// vhci_hcd.N directory of the kernel's sysfs is, for the controllers of a
// [controller.Table].
//
//	devices/platform/vhci_hcd.N/{attach,detach,nports,status}
//	c/NAME/{attach,detach,nports,status,status.1}
//
// The first directory is for the host, and for programs that take a path, such
// as package vhci. The second has the same controller under a name that nobody
// can guess, for containers: its files are bound over those of the kernel's
// vhci_hcd.0, see container.BindController. A bound file shows the path it came
// from in /proc/self/mountinfo, so that path must not tell which of how many
// controllers it is. No name in c is listed.
//
// # For the stock tools
//
// libusbip looks up the device of each port in /sys, and every command of the
// stock usbip fails if there is none. So in c a port whose device no kernel has,
// as with the driver controller.User, stays at 005: the stock tool then does not
// list it, and can attach and detach. Where a kernel has the device, the busid is
// the kernel's, and a device that is being detached is at 005 again. In
// vhci_hcd.N the status says all that the controller knows.
//
// libusbip also reads as many of status.1 and on as there are vhci_hcd.*
// directories, and writes past its array if these have more ports than nports
// says. It cannot parse a header alone. So status.1 repeats the last port.
//
// # Attach
//
// The descriptor in what is written to attach is the writer's. Who opens the file
// is identified then, and the socket is taken when the same process writes. The
// write returns when the device works or cannot be used; the log then has the
// reason, where the writer has a number. It ends early if the writer is killed.
// The texts are the kernel's, and so is that a write is one request: what comes
// in two pieces is EINVAL.
//
// # What it costs
//
// A node is a number: controller and file. Nothing is kept for it, so a tree of
// ten thousand controllers costs no more than their table, and the time of a
// request does not depend on it. An open file costs a few words; there are at
// most 128 of a controller, or a tenant could use up the daemon's descriptors.
// Each request has a goroutine, so an attach that hangs holds up nobody else.
//
// # Who can end it
//
// There is one connection to the kernel for all controllers. Whoever has
// CAP_SYS_ADMIN outside of all user namespaces, and so a privileged container
// too, can unmount a file that is bound to him by force, which ends the
// connection: [Tree.Done] tells.
//
// # What it is not
//
// It mounts nothing in containers, and decides on no rights but those of the
// files' owner: whoever has a file uses it.
//
// # Dead ends
//
// Package fs of go-fuse keeps a node for each name that the kernel has seen, in
// a tree that numbers them one after the other; inode numbers then tell a
// container of its neighbours. Its direct mount opens /dev/fuse without
// O_CLOEXEC: a child that outlives the daemon would keep the mount from dying
// with it, and requests would hang in place of failing with ENOTCONN.
//
// A program that is killed while a thread of its own waits for an answer from
// itself neither ends nor lets go of the connection, until somebody unmounts by
// force. A daemon uses its tree in threads that do not have the connection only:
// see [Tree.Server].
//
// An interrupt is any signal, and a Go program that writes gets SIGURG from its
// own runtime. Ending the attempt for that spoils a connection that is in use.
package sysfs
