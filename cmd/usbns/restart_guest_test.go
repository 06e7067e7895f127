//go:build guest

//vmexec:modules vhci-hcd usbhid hid-generic evdev

package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestGuestDaemonIsKilled has a scanner in the kernel type on while its daemon is
// killed, and is ended, and is there no more. The next one has it where it was,
// and can detach it.
func TestGuestDaemonIsKilled(t *testing.T) {
	e := startExport(t, anyPort, "scanner")
	base := t.TempDir()
	dir := filepath.Join(base, "run")
	daemon := runDaemon(t, base, dir)
	create := []string{"controller", "create", "--run", dir, "--driver", "kernel", "--allow", "keyboard", "till"}
	if err := fail(t, create...); !strings.Contains(err.Error(), "kernel.sysrq=0") {
		t.Fatalf("where a keyboard can reset the machine: %v", err)
	}
	makeKeyboardsSafe(t)
	execute(t, create...)
	execute(t, "attach", "--run", dir, "-r", e.addr, "-b", "1-1", "-i", "till")
	if err := fail(t, "transfer", "--run", dir, "-i", "till", "-p", "0", "-e", "0x81"); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("a transfer to a device that the kernel has: %v", err)
	}
	before := execute(t, "port", "--run", dir, "-i", "till", "--json")
	device := kernelDevice(t)
	keys := openKeys(t)
	scan(t, e, keys)
	for _, end := range []func(*testing.T, *exec.Cmd){kill, interrupt} {
		end(t, daemon)
		scan(t, e, keys)
		daemon = runDaemon(t, base, dir)
		scan(t, e, keys)
		if after := execute(t, "port", "--run", dir, "-i", "till", "--json"); after != before {
			t.Errorf("the next daemon has\n%s\nand the one before had\n%s", after, before)
		}
		if now := kernelDevice(t); now != device {
			t.Errorf("with the next daemon the device is %q, it was %q", now, device)
		}
	}
	execute(t, "detach", "--run", dir, "-i", "till", "-p", "0")
	if _, err := io.Copy(io.Discard, keys); !errors.Is(err, syscall.ENODEV) {
		t.Errorf("the input device ends with %v", err)
	}
	execute(t, "controller", "delete", "--run", dir, "till") // which returns when the device is gone
	if now := kernelDevice(t); now != "" {
		t.Errorf("the device is still there: %s", now)
	}
	interrupt(t, daemon)
	if err := e.end(); err != nil {
		t.Error(err)
	}
}

// makeKeyboardsSafe does what a refusal says, until the test ends.
func makeKeyboardsSafe(t *testing.T) {
	t.Helper()
	const sysrq = "/proc/sys/kernel/sysrq"
	before, err := os.ReadFile(sysrq)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.WriteFile(sysrq, before, 0) })
	if err := os.WriteFile(sysrq, []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	console, err := os.OpenFile("/dev/tty0", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	const setMode, unicode, off = 0x4b45, 3, 4 // KDSKBMODE, K_UNICODE and K_OFF, include/uapi/linux/kd.h
	t.Cleanup(func() {
		_ = unix.IoctlSetInt(int(console.Fd()), setMode, unicode)
		console.Close()
	})
	if err := unix.IoctlSetInt(int(console.Fd()), setMode, off); err != nil {
		t.Fatal(err)
	}
}

// openKeys opens the only input device of a USB device.
func openKeys(t *testing.T) *os.File {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		found, _ := filepath.Glob("/sys/devices/platform/vhci_hcd.*/usb*/*-*/*:*/*/input/input*/event*")
		if len(found) == 1 {
			f, err := os.Open(filepath.Join("/dev/input", filepath.Base(found[0])))
			if err == nil {
				t.Cleanup(func() { f.Close() })
				return f
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("input devices %q", found)
		}
	}
}

// scan has a code scanned, and reads it as a program would.
func scan(t *testing.T, e *exportRun, keys io.Reader) {
	t.Helper()
	if _, err := fmt.Fprintln(e.stdin, "1-1 42"); err != nil {
		t.Fatal(err)
	}
	var got []uint16
	for len(got) < 3 {
		var event struct {
			Sec, Usec  int64
			Type, Code uint16
			Value      int32
		}
		if err := binary.Read(keys, binary.NativeEndian, &event); err != nil {
			t.Fatal(err)
		}
		if event.Type == 1 && event.Value == 1 {
			got = append(got, event.Code)
		}
	}
	if want := []uint16{5, 3, 28}; !slices.Equal(got, want) { // KEY_4, KEY_2, KEY_ENTER
		t.Errorf("keys are %v, want %v", got, want)
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
	if len(found) == 0 {
		return ""
	}
	number, err := os.ReadFile(found[0])
	if err != nil { // it has gone meanwhile
		return ""
	}
	return filepath.Dir(found[0]) + " " + string(number)
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

func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
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
