//go:build linux

// Package thread runs functions that change the thread they run in: namespaces,
// the root, the table of descriptors.
package thread

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Run runs f in a thread that ends with it.
func Run(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			result <- f() // locked for good: the runtime lets the thread end
			return
		}
		// The first thread never ends. It is held until f has had another.
		err := Run(f)
		runtime.UnlockOSThread()
		result <- err
	}()
	return <-result
}

// RunWithout is Run in a thread with descriptors of its own: those of the process,
// but for fd. What f opens it need not close, and Go's os.File is not for it.
//
// It is for a process that serves a FUSE file system and uses it. Killed while a
// thread waits for the answer of another, the process cannot end, and keeps the
// connection open so that the wait never ends: unless that thread does not have
// it.
func RunWithout(fd int, f func() error) error {
	return Run(func() error {
		if err := unix.Unshare(unix.CLONE_FILES); err != nil {
			return err
		}
		if fd >= 0 {
			if err := unix.Close(fd); err != nil {
				return err
			}
		}
		return f()
	})
}
