//go:build linux

package vhci_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/vhci"
	"github.com/usbns/usbns/vhci/vhcitest"
)

func TestRootHubs(t *testing.T) {
	kernel := vhcitest.New(t, 2, 15)
	d := open(t, kernel.Sysfs(), 0)
	platform := filepath.Dir(d.Path())
	for controller, want := range [][2]struct {
		bus   int
		path  string
		first string
	}{
		{{1, "vhci_hcd.0/usb1", "1-1"}, {2, "vhci_hcd.0/usb2", "2-1"}},
		{{3, "vhci_hcd.1/usb3", "3-1"}, {4, "vhci_hcd.1/usb4", "4-1"}},
	} {
		hubs, err := d.RootHubs(controller)
		if err != nil {
			t.Fatal(err)
		}
		for hub, h := range hubs {
			want := want[hub]
			if h.Controller != controller || h.Hub != vhci.Hub(hub) || h.Bus != want.bus {
				t.Errorf("%s hub of controller %d: %+v, want bus %d", vhci.Hub(hub), controller, h, want.bus)
			}
			if h.Path() != filepath.Join(platform, want.path) {
				t.Errorf("path %s, want %s", h.Path(), want.path)
			}
			if h.BusID(0) != want.first {
				t.Errorf("busid of the first port %s, want %s", h.BusID(0), want.first)
			}
		}
	}
}

func TestRootHubsRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		files map[string]string
		want  error
	}{
		"none, as in usbns":  {nil, fs.ErrNotExist},
		"one":                {map[string]string{"usb1/speed": "480\n"}, fs.ErrNotExist},
		"two of a kind":      {map[string]string{"usb1/speed": "480\n", "usb2/speed": "480\n"}, fs.ErrNotExist},
		"no speed":           {map[string]string{"usb1/uevent": "", "usb2/speed": "5000\n"}, fs.ErrNotExist},
		"a speed of no hub":  {map[string]string{"usb1/speed": "12\n", "usb2/speed": "5000\n"}, syscall.EINVAL},
		"a speed of no sort": {map[string]string{"usb1/speed": "fast\n", "usb2/speed": "5000\n"}, syscall.EINVAL},
		"other names":        {map[string]string{"usbx/speed": "480\n", "usb-1/speed": "5000\n"}, fs.ErrNotExist},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string]string{"vhci_hcd.0/nports": "2\n", "vhci_hcd.0/status": statusText(0, 1)}
			for file, text := range tt.files {
				files["vhci_hcd.0/"+file] = text
			}
			d := open(t, vhci.Sysfs{Root: tree(t, files)}, 0)
			if hubs, err := d.RootHubs(0); !errors.Is(err, tt.want) {
				t.Errorf("hubs %+v, error %v; want %v", hubs, err, tt.want)
			}
		})
	}
	kernel := vhcitest.New(t, 1, 1)
	d := open(t, kernel.Sysfs(), 0)
	if _, err := d.RootHubs(1); !errors.Is(err, vhci.ErrNoController) {
		t.Errorf("root hubs of no controller: %v", err)
	}
}

func TestDeviceWaitsForAuthorization(t *testing.T) {
	kernel := vhcitest.New(t, 2, 2)
	d := open(t, kernel.Sysfs(), 0)
	hubs, err := d.RootHubs(1)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hubs {
		if err := h.SetAuthorizedDefault(false); err != nil {
			t.Fatal(err)
		}
	}

	const port = 7
	fd, _ := pair(t)
	if err := d.Attach(vhci.AttachRequest{Port: port, SockFD: fd, Speed: usb.SpeedSuper}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Device(port); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("device before it has an address: %v", err)
	}
	busid := kernel.Enumerate(port)
	device, err := d.Device(port)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	if device.BusID != busid || device.Path() != filepath.Join(hubs[vhci.HubSuper].Path(), busid) {
		t.Errorf("device %s at %s, want %s", device.BusID, device.Path(), busid)
	}
	if devnum, err := device.Root().ReadFile("devnum"); err != nil || len(devnum) == 0 {
		t.Errorf("devnum %q, %v", devnum, err)
	}

	if kernel.Authorized(port) {
		t.Error("authorized before we said so")
	}
	if err := device.SetAuthorized(true); err != nil {
		t.Fatal(err)
	}
	if !kernel.Authorized(port) {
		t.Error("not authorized although we said so")
	}
	if err := device.SetAuthorized(false); err != nil {
		t.Fatal(err)
	}
	if kernel.Authorized(port) {
		t.Error("authorized although it was taken back")
	}
}

// A device that comes to the port after ours must not be authorised in its
// place.
func TestDeviceIsNotItsSuccessor(t *testing.T) {
	kernel := vhcitest.New(t, 1, 1)
	// The system call itself, so that what is held counts.
	d := open(t, vhci.Sysfs{Root: kernel.Sysfs().Root}, 0)
	attach := func() *vhci.Device {
		t.Helper()
		fd, _ := pair(t)
		if err := kernel.Sysfs().Write("vhci_hcd.0/attach", vhci.AppendAttach(nil, vhci.AttachRequest{SockFD: fd, Speed: usb.SpeedHigh})); err != nil {
			t.Fatal(err)
		}
		kernel.Enumerate(0)
		device, err := d.Device(0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { device.Close() })
		return device
	}

	hubs, err := d.RootHubs(0)
	if err != nil {
		t.Fatal(err)
	}
	if err := hubs[vhci.HubHigh].SetAuthorizedDefault(false); err != nil {
		t.Fatal(err)
	}
	first := attach()
	kernel.Finish(0)
	second := attach()

	err = first.SetAuthorized(true)
	if op, ok := errors.AsType[*vhci.OpError](err); !ok || !errors.Is(err, fs.ErrNotExist) || op.Port != 0 || op.Path != first.Path() {
		t.Errorf("authorizing a device that is gone: %v", err)
	}
	if kernel.Authorized(0) {
		t.Error("the successor was authorized")
	}
	if err := second.SetAuthorized(true); err != nil {
		t.Error(err)
	}
	if !kernel.Authorized(0) {
		t.Error("the second device was not authorized")
	}
}

func TestDeviceRefuses(t *testing.T) {
	kernel := vhcitest.New(t, 1, 2)
	d := open(t, kernel.Sysfs(), 0)
	for _, port := range []int{-1, 0, 4} {
		if device, err := d.Device(port); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("port %d: %v, %v", port, device, err)
		}
	}
	if err := os.RemoveAll(filepath.Join(d.Path(), "usb1")); err != nil {
		t.Fatal(err)
	}
	if device, err := d.Device(0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a root hub: %v, %v", device, err)
	}
}
