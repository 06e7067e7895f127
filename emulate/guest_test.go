//go:build guest

//vmexec:modules vhci-hcd usbhid hid-generic evdev

package emulate_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/internal/usbiptest"
	"github.com/usbns/usbns/usb"
)

// The tests here attach emulated devices to the guest's own kernel with the
// stock client, over TCP, and use them as programs do. The kernel must have
// nothing to complain of.

// A guestDevice is an emulated device that the kernel has attached.
type guestDevice struct {
	usb.Device
	path string // its directory in /sys/bus/usb/devices
	node string // its file in /dev/bus/usb
}

// attach exports a device of that kind and has the stock client attach it.
func attach(t *testing.T, kind string, o emulate.Options) *guestDevice {
	t.Helper()
	d, err := emulate.Open(kind, o)
	if err != nil {
		t.Fatal(err)
	}
	checkKernelLog(t)
	uevents := listenUevents(t)
	usbiptest.Export(t, usbiptest.StockAddr, d)
	if out, err := exec.Command("usbip", "attach", "-r", "127.0.0.1", "-b", "1-1").CombinedOutput(); err != nil {
		t.Fatalf("usbip attach: %v\n%s", err, out)
	}
	g := &guestDevice{Device: d}
	uevents.until(t, "a configured device", func() bool {
		g.path = findDevice(d.Descriptors())
		return g.path != ""
	})
	g.node = fmt.Sprintf("/dev/bus/usb/%03s/%03s", readFile(g.path, "busnum"), readFile(g.path, "devnum"))
	t.Cleanup(func() { detach(t, uevents, g.path) })
	return g
}

// detach frees the only port that is in use.
func detach(t *testing.T, uevents *ueventSocket, path string) {
	out, err := exec.Command("usbip", "detach", "-p", attachedPort(t)).CombinedOutput()
	if err != nil {
		t.Errorf("usbip detach: %v\n%s", err, out)
		return
	}
	uevents.until(t, "the device to go", func() bool {
		_, err := os.Stat(path)
		return errors.Is(err, os.ErrNotExist)
	})
}

func attachedPort(t *testing.T) string {
	t.Helper()
	status, err := os.ReadFile("/sys/devices/platform/vhci_hcd.0/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "006" {
			return strings.TrimLeft(f[1][:3], "0") + f[1][3:]
		}
	}
	t.Fatalf("no port is in use:\n%s", status)
	return ""
}

// findDevice returns the directory of a device that is configured, "" if there
// is none of that kind.
func findDevice(d *usb.Descriptors) string {
	dev := d.Device()
	dirs, _ := filepath.Glob("/sys/bus/usb/devices/*-*")
	for _, dir := range dirs {
		if readFile(dir, "idVendor") == fmt.Sprintf("%04x", dev.Vendor) &&
			readFile(dir, "idProduct") == fmt.Sprintf("%04x", dev.Product) &&
			readFile(dir, "bConfigurationValue") != "" {
			return dir
		}
	}
	return ""
}

// readFile returns the text of a file, "" if it cannot be read.
func readFile(dir, name string) string {
	b, _ := os.ReadFile(filepath.Join(dir, name))
	return strings.TrimSpace(string(b))
}

// waitNode waits for the file in dir that belongs to the first directory of sysfs
// that matches, below the device's.
func (g *guestDevice) waitNode(t *testing.T, pattern, dir string) (node string) {
	t.Helper()
	listenUevents(t).until(t, pattern, func() bool {
		found, _ := filepath.Glob(filepath.Join(g.path, pattern))
		if len(found) == 0 {
			return false
		}
		node = filepath.Join(dir, filepath.Base(found[0]))
		_, err := os.Stat(node) // it is there before its uevent
		return err == nil
	})
	return node
}

// A ueventSocket gets what the kernel tells of devices that come and go.
type ueventSocket struct{ f *os.File }

func listenUevents(t *testing.T) *ueventSocket {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "uevents")
	t.Cleanup(func() { f.Close() })
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		t.Fatal(err)
	}
	return &ueventSocket{f}
}

// until asks again at every uevent. The test's own time limit bounds it.
func (s *ueventSocket) until(t *testing.T, what string, done func() bool) {
	t.Helper()
	b := make([]byte, 16<<10)
	for !done() {
		if _, err := s.f.Read(b); err != nil && !errors.Is(err, unix.ENOBUFS) {
			t.Fatalf("wait for %s: %v", what, err)
		}
	}
}

// isNoise tells complaints that no device is to blame for.
func isNoise(line string) bool {
	switch line {
	// Logged for every full speed device: vhci_hub_control
	// (drivers/usb/usbip/vhci_hcd.c) knows only the other speeds.
	case "vhci_hcd: vhci_device speed not set":
		return true
	}
	// Logged whenever a driver asks for the number of the frame: vhci has none.
	if strings.HasSuffix(line, ": Not yet implemented") || strings.HasPrefix(line, "vhci_get_frame_number: ") {
		return true
	}
	// A machine that is emulated on a busy one.
	return strings.HasPrefix(line, "clocksource: ") || strings.HasPrefix(line, "hrtimer: ")
}

// checkKernelLog fails the test if the kernel logs a warning, or worse, from now
// until the end of the test.
func checkKernelLog(t *testing.T) {
	t.Helper()
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer unix.Close(fd)
		b := make([]byte, 16<<10)
		for {
			n, err := unix.Read(fd, b)
			if err != nil {
				return
			}
			// "priority,sequence,time,flags;text", the priority with the facility
			// in the bits above 3.
			head, text, _ := bytes.Cut(b[:n], []byte(";"))
			var priority int
			fmt.Sscanf(string(head), "%d,", &priority)
			line, _, _ := bytes.Cut(text, []byte("\n"))
			if priority&7 <= 4 && !isNoise(string(line)) {
				t.Errorf("the kernel complains: %s", line)
			}
		}
	})
}
