//go:build linux

package escape

import (
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// signalled sends signals to this thread, as Go's scheduler does now and then,
// until the test ends.
func signalled(t *testing.T) {
	runtime.LockOSThread()
	pid, tid := unix.Getpid(), unix.Gettid()
	stop := make(chan struct{})
	var signals sync.WaitGroup
	signals.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Tgkill(pid, tid, unix.SIGURG)
			}
		}
	})
	t.Cleanup(func() {
		close(stop)
		signals.Wait()
		runtime.UnlockOSThread()
	})
}
