// Package behaviour holds tests that end in every way a test can.

//vmexec:modules dummy_hcd
//vmexec:qemu -device qemu-xhci -device usb-kbd
//vmexec:env VMEXEC_TEST_VARIABLE
//vmexec:file ../carried:/opt/carried ../carried/sub:/bin/carried
package behaviour

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

func TestFail(t *testing.T) { t.Error("as it should") }

func TestPanic(t *testing.T) { panic("as it should") }

func TestHang(t *testing.T) { select {} }

// The runtime's timers stop as well, and with them the test's own timeout.
func TestStop(t *testing.T) {
	fmt.Println("stopping")
	syscall.Kill(os.Getpid(), syscall.SIGSTOP)
}

func TestKilled(t *testing.T) { syscall.Kill(os.Getpid(), syscall.SIGKILL) }

func TestKernelPanic(t *testing.T) {
	os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
}

// The child keeps the test's output open.
func TestOrphan(t *testing.T) {
	cmd := exec.Command("sleep", "infinity")
	cmd.Stdout = os.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

func TestMuchOutput(t *testing.T) {
	os.Stdout.Write(bytes.Repeat([]byte("0123456789abcde\n"), 1<<16))
}

func TestReadFile(t *testing.T) {
	if _, err := os.ReadFile("testdata/greeting"); err != nil {
		t.Error(err)
	}
}

func TestSurroundings(t *testing.T) {
	for path, want := range map[string]string{
		"testdata/greeting":                   "hello\n",
		"/opt/carried/sub/file":               "carried\n",
		"/usr/bin/carried/file":               "carried\n",
		"/bin/sh":                             "", // still there
		"/opt/carried/link":                   "carried\n",
		"/sys/module/dummy_hcd/refcnt":        "0\n",
		"/sys/class/net/lo/operstate":         "unknown\n", // what lo shows when it is up
		"/proc/sys/kernel/panic":              "-1\n",
		"/sys/bus/usb/devices/usb1/bcdDevice": "",
	} {
		got, err := os.ReadFile(path)
		if err != nil || want != "" && string(got) != want {
			t.Errorf("%s = %q, %v; want %q", path, got, err, want)
		}
	}
	if got := os.Getenv("VMEXEC_TEST_VARIABLE"); got != "value" {
		t.Errorf("the variable is %q", got)
	}
	if got := os.Getenv("VMEXEC_TEST_SECRET"); got != "" {
		t.Errorf("a variable nobody named is %q", got)
	}
	if _, err := os.Stat("behaviour_test.go"); err == nil {
		t.Error("more than testdata is there of the package")
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Error(err)
	}
	fmt.Printf("kernel %s\n", strings.TrimSpace(string(release)))
}
