//go:build linux

package escape

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// The kernel takes no program while a signal is pending: that is not what keeps
// an attacker out.
func TestSignalsKeepNoProgramOut(t *testing.T) {
	signalled(t)
	for range 300 {
		_, err := new(attempt).kernelBPF()
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) {
			t.Skip("this machine takes no programs for kprobes from us: ", err)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
