//go:build linux

package escape

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// The kernel takes no program while a signal is pending, and Go's runtime sends
// many: that is not what keeps an attacker out.
func TestSignalsKeepNoProgramOut(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tid := unix.Gettid()
	stop := make(chan struct{})
	var signals sync.WaitGroup
	signals.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Tgkill(os.Getpid(), tid, unix.SIGURG) // what the runtime sends
			}
		}
	})
	defer signals.Wait()
	defer close(stop)
	for range 300 {
		_, err := new(attempt).kernelBPF()
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) {
			t.Skip("loads no programs here: ", err)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
