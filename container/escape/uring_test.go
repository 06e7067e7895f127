//go:build linux

package escape

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// What a signal interrupts has not opened anything yet. Lookups in a tmpfs are
// not done at once.
func TestUringWaits(t *testing.T) {
	signalled(t)
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
