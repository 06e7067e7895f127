//go:build guest

//vmexec:modules vhci-hcd

package vhci_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/vhci"
)

func openKernel(t *testing.T) *vhci.Driver {
	t.Helper()
	d := open(t, vhci.Sysfs{}, 0)
	want := map[usb.Speed]int{usb.SpeedHigh: 0, usb.SpeedSuper: d.Geometry().HubPorts}
	t.Cleanup(func() {
		ports, err := d.AllPorts()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range ports {
			if !p.Free() {
				_ = d.Detach(p.Number)
				until(t, d, p.Number, vhci.StatusNull)
			}
		}
		for _, speed := range []usb.Speed{usb.SpeedHigh, usb.SpeedSuper} {
			for first := -1; first != want[speed]; { // the devices leave later
				if first, err = d.FreePort(speed); err != nil {
					t.Fatal(err)
				}
				runtime.Gosched()
			}
		}
	})
	return d
}

// until reads a port until it has come to a status. The kernel announces no
// change of it, so reading again is all there is.
func until(t *testing.T, d *vhci.Driver, port int, want vhci.Status) vhci.Port {
	t.Helper()
	place, _ := d.Geometry().Place(port)
	for {
		ports, err := d.Ports(place.Controller)
		if err != nil {
			t.Fatal(err)
		}
		if p := ports[port%len(ports)]; p.Status == want {
			return p
		}
		runtime.Gosched()
	}
}

func TestGuestGeometry(t *testing.T) {
	d := openKernel(t)
	// The configuration of Debian's kernels.
	if got, want := d.Geometry(), (vhci.Geometry{Controllers: 8, HubPorts: 15}); got != want {
		t.Errorf("geometry %+v, want %+v", got, want)
	}
	for index, says := range map[int]string{1: "vhci_hcd.0", 8: "vhci_hcd.8"} {
		other, err := vhci.Open(index)
		if !errors.Is(err, vhci.ErrNoController) || !strings.Contains(err.Error(), says) {
			t.Errorf("open of controller %d: %v, %v", index, other, err)
		}
	}
	byPath, err := vhci.OpenPath("/sys/bus/platform/devices/vhci_hcd.0")
	if err != nil {
		t.Fatal(err)
	}
	defer byPath.Close()
	if byPath.Path() != d.Path() {
		t.Errorf("path %s, want %s", byPath.Path(), d.Path())
	}
}

func TestGuestStatusTextOfAllControllers(t *testing.T) {
	d := openKernel(t)
	fd, _ := pair(t)
	for _, r := range []vhci.AttachRequest{
		{Port: 2, SockFD: fd, DevID: 1<<16 | 2, Speed: usb.SpeedHigh},
		{Port: 46, SockFD: fd, DevID: 0xffff_ffff, Speed: usb.SpeedSuper},
	} {
		if err := d.Attach(r); err != nil {
			t.Fatal(err)
		}
	}
	until(t, d, 46, vhci.StatusUsed)

	names, err := filepath.Glob(filepath.Join(d.Path(), "status*"))
	if err != nil || len(names) != d.Geometry().Controllers {
		t.Fatalf("status files %v, %v", names, err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		ports, err := vhci.ParseStatus(text)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(text), string(vhci.AppendStatus(nil, ports))); diff != "" {
			t.Errorf("%s (-kernel +printed):\n%s", name, diff)
		}
	}
	ports, err := d.AllPorts()
	if err != nil || len(ports) != d.Geometry().Ports() {
		t.Errorf("%d ports, %v", len(ports), err)
	}
}

func TestGuestAttachAndDetach(t *testing.T) {
	d := openKernel(t)
	fd, peer := pair(t)
	r := vhci.AttachRequest{Port: 33, SockFD: fd, DevID: 1<<16 | 2, Speed: usb.SpeedHigh}
	if err := d.Attach(r); err != nil {
		t.Fatal(err)
	}
	ports, err := d.Ports(1)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := ports[3], (vhci.Port{Number: 33, Hub: vhci.HubHigh, Status: vhci.StatusNotAssigned}); got != want {
		t.Errorf("attached: %+v, want %+v", got, want)
	}
	if device, err := d.Device(33); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("device %v, %v", device, err)
	}
	if free, err := d.FreePort(usb.SpeedHigh); err != nil || free != 0 {
		t.Errorf("free port %d, %v", free, err)
	}

	for range 2 {
		if err := d.Detach(33); err != nil && !errors.Is(err, syscall.EINVAL) {
			t.Errorf("detach: %v", err)
		}
	}
	// The kernel lets go of its reference: ours is not the last.
	if _, err := io.Copy(io.Discard, peer); err != nil {
		t.Errorf("the peer's read: %v", err)
	}
	again, _ := pair(t)
	r.SockFD = again
	for err = d.Attach(r); errors.Is(err, syscall.EBUSY); {
		err = d.Attach(r)
	}
	if err != nil {
		t.Errorf("attach after a detach: %v", err)
	}
}

func TestGuestPeerClosing(t *testing.T) {
	d := openKernel(t)
	fd, peer := pair(t)
	if err := d.Attach(vhci.AttachRequest{SockFD: fd, DevID: 1, Speed: usb.SpeedFull}); err != nil {
		t.Fatal(err)
	}
	peer.Close()
	until(t, d, 0, vhci.StatusNull)
}

func TestGuestAttachErrors(t *testing.T) {
	testAttachErrors(t, openKernel(t))
}

// The texts behind the parsers: what they take and refuse is what the kernel
// does.
func TestGuestRequestTexts(t *testing.T) {
	d := openKernel(t)
	write := func(file, text string) error {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(d.Path(), file), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		_, err = f.WriteString(text)
		return err
	}
	for text, ok := range map[string]bool{
		"1 FD 65538 3":         true,
		"1 FD 65538 3\n":       true,
		" \t\n1\vFD\f65538\r3": true,
		"1 FD 65538\xa03":      true,
		"1 FD 65538 3 9":       true,
		"1 FD 65538 3x":        true,
		"1 FD 65538 3\x0099":   true,
		"0001 FD 065538 03":    true,
		"\n":                   false,
		"1 FD 65538":           false,
		"0x1 FD 65538 3":       false,
		"+1 FD 65538 3":        false,
		"-1 FD 65538 3":        false,
		"1 FD 65538 -3":        false,
		"1,FD,65538,3":         false,
		"1 FD 65538 \x003":     false,
		"1 FD 65538 0":         false,
		"1 FD 65538 7":         false,
	} {
		fd, _ := pair(t) // a detach shuts it down
		text = strings.ReplaceAll(text, "FD", strconv.Itoa(fd))
		r, parseErr := vhci.ParseAttach([]byte(text))
		err := write("attach", text)
		if (err == nil) != ok || (parseErr == nil) != ok {
			t.Errorf("attach %q: kernel %v, parser %+v, %v; want ok %v", text, err, r, parseErr, ok)
		}
		if err == nil {
			if err := d.Detach(1); err != nil {
				t.Error(err)
			}
			until(t, d, 1, vhci.StatusNull)
		}
	}

	for text, ok := range map[string]bool{
		"1": true, "1\n": true, "+1": true, "001": true, "1\x002": true,
		" 1": false, "1 ": false, "1\n\n": false, "1 2": false, "0x1": false, "-1": false, "4294967297": false, "one": false,
	} {
		fd, _ := pair(t)
		if err := d.Attach(vhci.AttachRequest{Port: 1, SockFD: fd, Speed: usb.SpeedHigh}); err != nil {
			t.Fatal(err)
		}
		port, parseErr := vhci.ParseDetach([]byte(text))
		err := write("detach", text)
		if (err == nil) != ok || (parseErr == nil) != ok || ok && port != 1 {
			t.Errorf("detach %q: kernel %v, parser %d, %v; want ok %v", text, err, port, parseErr, ok)
		}
		if err != nil {
			if err := d.Detach(1); err != nil {
				t.Error(err)
			}
		}
		until(t, d, 1, vhci.StatusNull)
	}
}

func TestGuestLanding(t *testing.T) {
	d := openKernel(t)
	for _, r := range []vhci.AttachRequest{
		{Port: 0, Speed: usb.SpeedSuper},
		{Port: 17, Speed: usb.SpeedLow},
		{Port: 17, Speed: usb.SpeedSuper},
		{Port: 239, Speed: usb.SpeedFull},
	} {
		r.SockFD, _ = pair(t)
		if err := d.Attach(r); err != nil {
			t.Fatal(err)
		}
		want, _ := d.Geometry().Landing(r.Port, r.Speed)
		ports, err := d.AllPorts()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range ports {
			if p.Free() != (p.Number != want) {
				t.Errorf("%s speed attached to port %d: %+v, want %d to be taken", r.Speed, r.Port, p, want)
			}
		}
		if err := d.Detach(want); err != nil {
			t.Fatal(err)
		}
		until(t, d, want, vhci.StatusNull)
	}
}

func TestGuestRootHubs(t *testing.T) {
	d := openKernel(t)
	seen := make(map[int]bool)
	for k := range d.Geometry().Controllers {
		hubs, err := d.RootHubs(k)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range hubs {
			if seen[h.Bus] {
				t.Errorf("bus %d twice", h.Bus)
			}
			seen[h.Bus] = true
			maxchild, err := os.ReadFile(filepath.Join(h.Path(), "maxchild"))
			if err != nil || strings.TrimSpace(string(maxchild)) != strconv.Itoa(d.Geometry().HubPorts) {
				t.Errorf("%s has %s ports, %v", h.Path(), maxchild, err)
			}
		}
	}
}

// At super speed the address comes before the first answer of the peer, so a
// silent one is enough to see the kernel's name for the port.
func TestGuestBusID(t *testing.T) {
	d := openKernel(t)
	place := vhci.Place{Controller: 5, Hub: vhci.HubSuper, Index: 14}
	port := d.Geometry().Number(place)
	fd, _ := pair(t)
	if err := d.Attach(vhci.AttachRequest{Port: port, SockFD: fd, DevID: 7, Speed: usb.SpeedSuper}); err != nil {
		t.Fatal(err)
	}
	hubs, err := d.RootHubs(place.Controller)
	if err != nil {
		t.Fatal(err)
	}
	got := until(t, d, port, vhci.StatusUsed)
	want := vhci.Port{
		Number: port, Hub: vhci.HubSuper, Status: vhci.StatusUsed,
		Speed: usb.SpeedSuper, DevID: 7, SockFD: fd, BusID: hubs[vhci.HubSuper].BusID(place.Index),
	}
	if got != want {
		t.Errorf("port %+v, want %+v", got, want)
	}
}

func TestGuestControllerThatIsNotReady(t *testing.T) {
	d := openKernel(t)
	const driver = "/sys/bus/platform/drivers/vhci_hcd/"
	bind := func(file, name string) {
		t.Helper()
		if err := os.WriteFile(driver+file, []byte(name), 0); err != nil {
			t.Fatal(err)
		}
	}
	bind("unbind", "vhci_hcd.3")
	ports, err := d.Ports(3)
	if err != nil {
		t.Fatal(err)
	}
	// These kernels have the fix and print it, so the two can be compared.
	text, err := os.ReadFile(filepath.Join(d.Path(), "status.3"))
	if err != nil {
		t.Fatal(err)
	}
	printed, err := vhci.ParseStatus(text)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(printed, ports); diff != "" {
		t.Errorf("ports (-kernel +ours):\n%s", diff)
	}
	fd, _ := pair(t)
	if err := d.Attach(vhci.AttachRequest{Port: 90, SockFD: fd, Speed: usb.SpeedHigh}); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("attach: %v, want EAGAIN", err)
	}
	if err := d.Detach(90); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("detach: %v, want EAGAIN", err)
	}
	if hubs, err := d.RootHubs(3); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("root hubs %+v, %v", hubs, err)
	}
	bind("bind", "vhci_hcd.3")
	if ports, err := d.Ports(3); err != nil || !ports[0].Free() {
		t.Errorf("when it is back: %v, %v", ports, err)
	}

	bind("unbind", "vhci_hcd.0")
	if _, err := vhci.Open(0); !errors.Is(err, vhci.ErrNoController) || !strings.Contains(err.Error(), "did not start") {
		t.Errorf("open without controller 0: %v", err)
	}
	bind("bind", "vhci_hcd.0")
}
