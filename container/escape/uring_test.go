//go:build linux

package escape

import (
	"errors"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// What a signal interrupts has not opened anything yet. Lookups in a tmpfs are
// not done at once.
func TestUringWaits(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pid, tid := unix.Getpid(), unix.Gettid()
	stop := make(chan struct{})
	var signals sync.WaitGroup
	signals.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Tgkill(pid, tid, unix.SIGURG) // as Go's scheduler does
			}
		}
	})
	defer signals.Wait()
	defer close(stop)
	for range 1000 {
		_, err := uringOpen("/dev/shm/usbns-no-such-file")
		if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
			t.Skip("this machine has no io_uring for us: ", err)
		}
		if !errors.Is(err, unix.ENOENT) {
			t.Fatalf("open what is not there: %v", err)
		}
	}
}
