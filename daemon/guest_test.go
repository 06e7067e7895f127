//go:build guest

//vmexec:modules vhci-hcd usbhid hid-generic evdev fuse

package daemon

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/usb"
)

const patience = time.Minute

// TestGuestKilledDaemon has a scanner in the kernel go on typing while its daemon
// is killed, and is ended, and is there no more. The next one has it where it
// was, and can detach it.
func TestGuestKilledDaemon(t *testing.T) {
	dir, vault := t.TempDir(), ""
	client := control.NewClient(dir)
	daemon := startReady(t, dir, vault)
	create := control.Create{Name: "alice", Driver: "kernel", HubPorts: 2, Allow: []string{"keyboard"}}
	if _, err := client.Create(t.Context(), create); err == nil || !strings.Contains(err.Error(), "kernel.sysrq=0") {
		t.Fatalf("where a keyboard can reset the machine: %v", err)
	}
	makeKeyboardsSafe(t)
	_, err := client.Create(t.Context(), create)
	must(t, err)

	scanner, err := emulate.NewScanner(emulate.Options{})
	must(t, err)
	defer scanner.Close()
	remote := control.Remote{Host: "shop", Port: "3240", BusID: "1-4"}
	port, err := client.Attach(t.Context(), serveTCP(t, scanner), control.Attach{
		Controller: "alice", Port: 1, DevID: 1, Speed: int(usb.SpeedFull), Remote: remote,
	})
	must(t, err)
	before, err := client.Ports(t.Context(), "alice")
	must(t, err)
	if p := before[port]; port != 1 || p.Status != 6 || p.Product != scanner.Descriptors().Device().Product || p.Remote != remote {
		t.Fatalf("port %d is %+v", port, p)
	}
	if _, err := client.Transfer(t.Context(), "alice", port, control.Transfer{Endpoint: 0x81}); !errors.Is(err, unix.EBUSY) {
		t.Errorf("a transfer to a device in the kernel: %v", err)
	}
	keys := openKeys(t)
	scan(t, scanner, keys)
	for _, signal := range []os.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		daemon.end(signal)
		scan(t, scanner, keys)
		daemon = startReady(t, dir, vault)
		scan(t, scanner, keys)
		after, err := client.Ports(t.Context(), "alice")
		must(t, err)
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("after %v ports are others:\n%s", signal, diff)
		}
	}

	must(t, client.Detach(t.Context(), "alice", port))
	if _, err := io.Copy(io.Discard, keys); !errors.Is(err, unix.ENODEV) {
		t.Errorf("the input device ends with %v", err)
	}
	must(t, client.Delete(t.Context(), "alice"))
	daemon.end(syscall.SIGTERM)
	if left, err := os.ReadDir(filepath.Join(dir, "state")); err != nil || len(left) != 0 {
		t.Errorf("left of the state: %v, %v", left, err)
	}
}

// makeKeyboardsSafe does what a refusal says, until the test ends.
func makeKeyboardsSafe(t *testing.T) {
	t.Helper()
	must(t, os.WriteFile("/proc/sys/kernel/sysrq", []byte("0"), 0))
	console, err := os.OpenFile("/dev/tty0", os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	t.Cleanup(func() { console.Close() })
	const setMode, off = 0x4b45, 4 // KDSKBMODE and K_OFF, include/uapi/linux/kd.h
	must(t, unix.IoctlSetInt(int(console.Fd()), setMode, off))
}

// openKeys opens the only input device of a USB device.
func openKeys(t *testing.T) *os.File {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		found, _ := filepath.Glob("/sys/bus/usb/devices/*-*:*/*/input/input*/event*")
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
func scan(t *testing.T, s *emulate.Scanner, keys *os.File) {
	t.Helper()
	told := make(chan error, 1)
	go func() { told <- s.Tell(t.Context(), "42") }()
	var got []uint16
	for len(got) < 3 {
		var e struct {
			Sec, Usec  int64
			Type, Code uint16
			Value      int32
		}
		must(t, binary.Read(keys, binary.NativeEndian, &e))
		if e.Type == 1 && e.Value == 1 {
			got = append(got, e.Code)
		}
	}
	must(t, <-told)
	if diff := cmp.Diff([]uint16{5, 3, 28}, got); diff != "" { // KEY_4, KEY_2, KEY_ENTER
		t.Errorf("keys are others:\n%s", diff)
	}
}
