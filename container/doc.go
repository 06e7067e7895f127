// Package container serves callers that live in containers: it tells who calls,
// takes the socket that a caller names by a descriptor of its own, and puts the
// files of a controller where the stock tools look for them.
//
// The kernel's attach file is written with the number of a descriptor, and the
// kernel looks it up in the writer. A daemon that offers such a file through
// FUSE learns a thread id and that number. [IdentifyCaller] fixes the process
// when it opens the file, and [Caller.TakeSocket] duplicates the socket when it
// writes. Where both sides are programs of ours, [SendSocket] and
// [ReceiveSocket] hand the socket over instead, which asks for no privilege.
//
// # Whom it trusts
//
// Nobody. A file that was opened by one process and is written by another is
// refused with EPERM, so that nobody is tricked into attaching a descriptor of
// his own by what looks like his standard output. A socket is looked at after it
// was duplicated, when its owner can no longer exchange it: see [CheckSocket].
//
// # What it needs
//
// Linux 5.6, /proc, the pid namespace of whoever mounted the FUSE file system,
// and CAP_SYS_PTRACE over the caller's user namespace. With
// kernel.yama.ptrace_scope=3 not even that is enough. Binding files needs Linux
// 5.12 and CAP_SYS_ADMIN.
//
// # Binding files
//
// [BindController] works on containers that run: it clones the files as mounts of
// their own, enters the mount namespace with a thread that ends afterwards, and
// mounts them there. A file whose daemon died answers ENOTCONN for good, so a new
// daemon calls it again. The directory stays the kernel's: libudev refuses one
// that is not on a sysfs.
//
// # What it is not
//
// It serves no files, makes no containers, and decides on no rights. It hides
// nothing of /sys.
//
// # Dead ends
//
// Opening /proc/PID/fd/N does not work for sockets (ENXIO). The descriptors of
// the group's leader are not always those of the thread that writes: a thread
// can unshare its table. So where the kernel has no pidfd of a thread (before
// 6.9), kcmp must prove that both share one.
package container
