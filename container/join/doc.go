// Package join runs this program once more inside a container that somebody else
// started: in its cgroup and all of its namespaces, as its root, and with no
// capability that its own programs cannot have.
//
// # How it works
//
// A thread takes itself into the container's mounts, network and so on. A process
// with more than one thread cannot enter a user namespace, and a Go program always
// has more. So the thread forks, and its child, which has one thread, enters the
// user namespace and becomes the program. Between the fork and the program nothing
// of Go's runtime may run: the system calls of the child are prepared as a list
// before, and all that the child does is to make one after the other.
//
// # Whom it trusts
//
// Not the container. The program is a sealed copy in memory, which root inside
// can read and not change. It has a session of its own, without our terminal.
// Whoever is root inside can trace it as any of his processes, and have it say
// what he likes.
//
// # What it is not
//
// The container's filter of system calls and the labels of a security module are
// not taken over: inside, the program may do more than its neighbours there, not
// less.
package join
