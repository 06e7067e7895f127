//go:build linux

package usbfstest

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
	"github.com/usbns/usbns/vhci"
)

const devID = 1<<16 | 2

// Attach puts dev into a port of the kernel's first controller, and returns it as
// the kernel shows it. Both are closed at the end of the test.
func Attach(t *testing.T, dev usb.Device) *Device {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	t.Cleanup(cancel)
	driver, err := vhci.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { driver.Close() })
	port, err := driver.FreePort(dev.Speed())
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := socketpair(t)
	ended := make(chan error, 1)
	go func() { ended <- usbip.ServeDevice(context.WithoutCancel(t.Context()), ours, devID, dev, nil) }()
	err = driver.Attach(vhci.AttachRequest{Port: port, SockFD: int(theirs.Fd()), DevID: devID, Speed: dev.Speed()})
	theirs.Close()
	t.Cleanup(func() {
		_ = driver.Detach(port) // fails where it was never attached
		if err := <-ended; err != nil {
			t.Errorf("the kernel's session: %v", err)
		}
		dev.Close()
		waitFor(t, ctx, "the port to be free", func() bool { return status(t, driver, port) == vhci.StatusNull })
	})
	if err != nil {
		t.Fatal(err)
	}
	d, err := Open(ctx, waitNode(t, ctx, driver, port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func socketpair(t *testing.T) (net.Conn, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "kernel's")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	return conn, theirs
}

// waitNode waits until the kernel has configured what is on a port, and returns
// its file.
func waitNode(t *testing.T, ctx context.Context, driver *vhci.Driver, port int) (node string) {
	t.Helper()
	waitFor(t, ctx, "the kernel to configure the device", func() bool {
		if status(t, driver, port) != vhci.StatusUsed {
			return false
		}
		d, err := driver.Device(port)
		if err != nil {
			return false
		}
		defer d.Close()
		var bus, number, value int
		for name, v := range map[string]*int{"busnum": &bus, "devnum": &number, "bConfigurationValue": &value} {
			b, err := d.Root().ReadFile(name)
			if err != nil {
				return false
			}
			if _, err := fmt.Sscan(string(b), v); err != nil {
				return false
			}
		}
		node = fmt.Sprintf("/dev/bus/usb/%03d/%03d", bus, number)
		return true
	})
	return node
}

func status(t *testing.T, driver *vhci.Driver, port int) vhci.Status {
	t.Helper()
	ports, err := driver.AllPorts()
	if err != nil {
		t.Fatal(err)
	}
	return ports[port].Status
}

// waitFor asks again and again: the kernel tells nobody of a port.
func waitFor(t *testing.T, ctx context.Context, what string, done func() bool) {
	t.Helper()
	for !done() {
		if ctx.Err() != nil {
			t.Fatalf("still waiting for %s", what)
		}
		runtime.Gosched()
	}
}
