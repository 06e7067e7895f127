//go:build guest

package vhci_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"testing"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
	"github.com/usbns/usbns/vhci"
)

// attachLoopback puts a device of its own, but equal to all others of this
// function, into a port.
func attachLoopback(t *testing.T, d *vhci.Driver, port int) {
	t.Helper()
	fd, peer := pair(t)
	conn, err := net.FileConn(peer)
	if err != nil {
		t.Fatal(err)
	}
	dev, err := emulate.NewLoopback(emulate.Options{Speed: usb.SpeedHigh})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- usbip.ServeDevice(context.WithoutCancel(t.Context()), conn, 0, dev, nil) }()
	t.Cleanup(func() {
		_ = d.Detach(port) // fails where it was not attached
		if err := <-ended; err != nil {
			t.Errorf("session of port %d: %v", port, err)
		}
		dev.Close()
	})
	if err := d.Attach(vhci.AttachRequest{Port: port, SockFD: fd, Speed: usb.SpeedHigh}); err != nil {
		t.Fatal(err)
	}
}

func deviceOn(t *testing.T, d *vhci.Driver, port int) *vhci.Device {
	t.Helper()
	until(t, d, port, vhci.StatusUsed)
	for {
		dev, err := d.Device(port)
		if err == nil {
			t.Cleanup(func() { dev.Close() })
			return dev
		}
		if !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

// A root hub looks after one port at a time. While it waits for the device on
// one, that of another is detached, but not yet gone. Whoever attaches there has
// his device taken for the old one if it says the same of itself: it is given no
// address, and the port never comes to 006.
func TestGuestFreePortHasNoLeavingDevice(t *testing.T) {
	d := openKernel(t)
	attachLoopback(t, d, 0)
	old := deviceOn(t, d, 0)

	const last = 14 // of the hub, so that the next round begins with port 0
	fd, silent := pair(t)
	if err := d.Attach(vhci.AttachRequest{Port: last, SockFD: fd, Speed: usb.SpeedHigh}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(silent, make([]byte, 48)); err != nil {
		t.Fatal(err) // a URB
	}
	if err := d.Detach(0); err != nil {
		t.Fatal(err)
	}
	until(t, d, 0, vhci.StatusNull)
	if port, err := d.FreePort(usb.SpeedHigh); err != nil || port != 1 {
		t.Errorf("free port %d, %v; want 1", port, err)
	}

	attachLoopback(t, d, 0)
	attachLoopback(t, d, 1)
	if err := d.Detach(last); err != nil {
		t.Fatal(err)
	}
	deviceOn(t, d, 1)
	if p := until(t, d, 0, vhci.StatusNotAssigned); p.BusID != "" {
		t.Errorf("port %+v", p)
	}
	if _, err := old.Root().ReadFile("descriptors"); err != nil {
		t.Errorf("the old device: %v", err)
	}
}
