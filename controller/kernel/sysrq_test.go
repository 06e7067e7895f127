package kernel_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Why keyboards are not let into a kernel just so: with Debian's settings one
// that is attached over the network resets the machine.
// TestGuestAltSysRqBDoesNotReset is the other half.
func TestAltSysRqBResets(t *testing.T) {
	const hint = "no guests: make fetch"
	vmexec, err := filepath.Abs("../../bin/vmexec")
	if err == nil {
		_, err = os.Stat("../../bin/guests")
	}
	if err != nil && os.Getenv("CI") != "" {
		t.Fatal(hint)
	} else if err != nil {
		t.Skip(hint)
	}
	cmd := exec.Command("go", "test", "-timeout", "150s", "-tags", "guest", "-run", "^TestReset$", "-exec", vmexec+" -kernel 6.12", ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "the guest died") || !strings.Contains(string(out), "sysrq: Resetting") {
		t.Errorf("%v\n%s", err, out)
	}
}
