//go:build guest

package main

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestGuestDaemonIsKilled shows that a device in the kernel is there as long as
// it is wanted, whatever becomes of daemons.
func TestGuestDaemonIsKilled(t *testing.T) {
	e := startExport(t, anyPort, "signpad")
	base := t.TempDir()
	dir := filepath.Join(base, "run")
	first := runDaemon(t, base, dir)
	execute(t, "controller", "create", "--run", dir, "--driver", "kernel", "pad")
	execute(t, "attach", "--run", dir, "-r", e.addr, "-b", "1-1", "-i", "pad")
	device := kernelDevice(t)
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	if now := kernelDevice(t); now != device {
		t.Errorf("without a daemon the device is %q, it was %q", now, device)
	}
	second := runDaemon(t, base, dir)
	if text := execute(t, "port", "--run", dir, "-i", "pad"); !strings.Contains(text, "Port in Use") || !strings.Contains(text, "signature pad") {
		t.Errorf("the next daemon has\n%s", text)
	}
	if now := kernelDevice(t); now != device {
		t.Errorf("with the next daemon the device is %q, it was %q", now, device)
	}
	// One that ends orderly leaves the device to the next one as well.
	interrupt(t, second)
	third := runDaemon(t, base, dir)
	execute(t, "detach", "--run", dir, "-i", "pad", "-p", "0")
	for deadline := time.Now().Add(time.Minute); kernelDevice(t) != ""; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the device is still there")
		}
	}
	interrupt(t, third)
	if err := e.end(); err != nil {
		t.Error(err)
	}
}

// kernelDevice identifies the device that the kernel has of vhci, "" if there is
// none.
func kernelDevice(t *testing.T) string {
	t.Helper()
	found, err := filepath.Glob("/sys/devices/platform/vhci_hcd.*/usb*/*-*/devnum")
	if err != nil || len(found) > 1 {
		t.Fatalf("devices %v, %v", found, err)
	}
	for _, file := range found {
		number, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			return ""
		}
		return filepath.Dir(file) + " " + string(number)
	}
	return ""
}

func runDaemon(t *testing.T, base, dir string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(base, "usbns")
	if err := os.Symlink(self, program); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "daemon", "--run", dir)
	cmd.Stderr = t.Output()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatalf("the daemon says %q, %v", line, err)
	}
	return cmd
}

func interrupt(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the daemon ends with %v", err)
	}
}
