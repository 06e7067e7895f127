//go:build linux

package usbfstest

import (
	"context"
	"fmt"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
	"github.com/usbns/usbns/vhci"
)

const devID = 1<<16 | 2

// A Port is a device in a port of the kernel.
type Port struct {
	dev  usb.Device
	node string
}

// Attach puts dev into a port of the kernel's first controller, for as long as the
// test lasts. dev is closed then.
func Attach(t *testing.T, dev usb.Device) *Port {
	t.Helper()
	driver, err := vhci.Open(0)
	must.OK(t, err)
	t.Cleanup(func() { driver.Close() })
	port, err := driver.FreePort(dev.Speed())
	must.OK(t, err)
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
		must.Become(t, "the port is free", func() bool { return status(t, driver, port) == vhci.StatusNull })
	})
	must.OK(t, err)
	return &Port{dev: dev, node: waitNode(t, driver, port)}
}

// Open returns the device as the kernel shows it, for a test to close. It is as
// new: what the kernel does not know of is reset behind its back.
func (p *Port) Open(t *testing.T) *Device {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), must.Patience)
	defer cancel()
	must.OK(t, p.dev.Reset(ctx))
	d, err := Open(ctx, p.node)
	must.OK(t, err)
	return d
}

func socketpair(t *testing.T) (net.Conn, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must.OK(t, err)
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "kernel's")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	must.OK(t, err)
	return conn, theirs
}

// waitNode waits until the kernel has configured what is on a port, and returns
// its file.
func waitNode(t *testing.T, driver *vhci.Driver, port int) (node string) {
	t.Helper()
	must.Become(t, "the kernel has configured the device", func() bool {
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
	ports, err := driver.Ports(port / (2 * driver.Geometry().HubPorts))
	must.OK(t, err)
	return ports[port%len(ports)].Status
}
