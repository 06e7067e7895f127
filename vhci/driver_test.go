//go:build linux

package vhci_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/vhci"
	"github.com/usbns/usbns/vhci/vhcitest"
)

// tree writes files under the platform directory of a root for Sysfs.
func tree(t *testing.T, files map[string]string) (root string) {
	t.Helper()
	root = t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, "devices/platform", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// statusText is the text of controller's status file with all ports free.
func statusText(controller, hubPorts int) string {
	ports := make([]vhci.Port, 2*hubPorts)
	for i := range ports {
		ports[i] = vhci.Port{
			Number: controller*len(ports) + i,
			Hub:    vhci.Hub(i / hubPorts),
			Status: vhci.StatusNull,
		}
	}
	return string(vhci.AppendStatus(nil, ports))
}

// lines returns the first n lines of text.
func lines(text string, n int) string {
	return strings.Join(strings.SplitAfter(text, "\n")[:n], "")
}

func open(t *testing.T, s vhci.Sysfs, index int) *vhci.Driver {
	t.Helper()
	d, err := s.Open(index)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// pair returns the two ends of a connected stream socket, the first as a number.
func pair(t *testing.T) (fd int, peer *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	peer = os.NewFile(uintptr(fds[1]), "peer")
	t.Cleanup(func() {
		unix.Close(fds[0])
		peer.Close()
	})
	return fds[0], peer
}

// Each status file costs a lock in the kernel, so only the one asked for is
// read.
func TestPortsReadsOneFile(t *testing.T) {
	kernel := vhcitest.New(t, 3, 2)
	d := open(t, kernel.Sysfs(), 0)
	for _, other := range []string{"status", "status.2"} {
		if err := os.Remove(filepath.Join(d.Path(), other)); err != nil {
			t.Fatal(err)
		}
	}
	ports, err := d.Ports(1)
	if err != nil {
		t.Fatal(err)
	}
	if len(ports) != 4 || ports[0].Number != 4 {
		t.Errorf("ports of controller 1: %+v", ports)
	}
	for _, controller := range []int{-1, 3} {
		if _, err := d.Ports(controller); !errors.Is(err, vhci.ErrNoController) {
			t.Errorf("controller %d: %v", controller, err)
		}
	}
}

func TestPortsRefusesAnothersPorts(t *testing.T) {
	for name, text := range map[string]string{
		"another controller's": statusText(0, 8),
		"fewer":                lines(statusText(1, 8), 1+15),
		"more":                 statusText(1, 8) + "ss  0032 004 000 00000000 000000 0-0\n",
		"hubs swapped":         strings.NewReplacer("hs ", "ss ", "ss ", "hs ").Replace(statusText(1, 8)),
		"not a status file":    "no such thing\n",
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t, vhci.Sysfs{Root: tree(t, map[string]string{
				"vhci_hcd.0/nports":   "32\n",
				"vhci_hcd.0/status":   statusText(0, 8),
				"vhci_hcd.0/status.1": text,
			})}, 0)
			if ports, err := d.Ports(1); !errors.Is(err, syscall.EINVAL) || !strings.Contains(err.Error(), "status.1") {
				t.Errorf("ports %v, error %v", ports, err)
			}
			if _, err := d.Ports(0); err != nil {
				t.Errorf("controller 0: %v", err)
			}
		})
	}
}

// Reading the status of a controller that never started kills the reader on
// kernels without the fix, so its file must not be touched.
func TestPortsOfAControllerThatNeverStarted(t *testing.T) {
	kernel := vhcitest.New(t, 2, 2)
	kernel.Stop(1)
	d := open(t, kernel.Sysfs(), 0)
	printed, err := os.ReadFile(filepath.Join(d.Path(), "status.1"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := vhci.ParseStatus(printed)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(d.Path(), "status.1")); err != nil {
		t.Fatal(err)
	}

	got, err := d.Ports(1)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ports (-printed +got):\n%s", diff)
	}
	fd, _ := pair(t)
	if err := d.Attach(vhci.AttachRequest{Port: 4, SockFD: fd, Speed: usb.SpeedHigh}); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("attach: %v, want EAGAIN", err)
	}
	if err := d.Detach(4); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("detach: %v, want EAGAIN", err)
	}
}

func TestFreePort(t *testing.T) {
	kernel := vhcitest.New(t, 2, 1)
	d := open(t, kernel.Sysfs(), 0)
	want := map[vhci.Hub][]int{vhci.HubHigh: {0, 2}, vhci.HubSuper: {1, 3}}
	for _, speed := range []usb.Speed{usb.SpeedLow, usb.SpeedSuperPlus} {
		for _, wantPort := range want[vhci.HubFor(speed)] {
			port, err := d.FreePort(speed)
			if err != nil || port != wantPort {
				t.Fatalf("free port for %s speed: %d, %v; want %d", speed, port, err, wantPort)
			}
			fd, _ := pair(t)
			if err := d.Attach(vhci.AttachRequest{Port: port, SockFD: fd, Speed: speed}); err != nil {
				t.Fatal(err)
			}
		}
		if port, err := d.FreePort(speed); !errors.Is(err, vhci.ErrNoFreePort) {
			t.Errorf("free port for %s speed when all are taken: %d, %v", speed, port, err)
		}
	}
	if err := d.Detach(2); err != nil {
		t.Fatal(err)
	}
	if port, err := d.FreePort(usb.SpeedFull); err != nil || port != 2 {
		t.Errorf("free port after a detach: %d, %v", port, err)
	}
}

func TestFreePortHasNoLeavingDevice(t *testing.T) {
	d := open(t, vhcitest.New(t, 1, 2).Sysfs(), 0)
	hubs, err := d.RootHubs(0)
	if err != nil {
		t.Fatal(err)
	}
	device := filepath.Join(hubs[vhci.HubHigh].Path(), hubs[vhci.HubHigh].BusID(0))
	if err := os.Mkdir(device, 0o755); err != nil {
		t.Fatal(err)
	}
	if port, err := d.FreePort(usb.SpeedHigh); err != nil || port != 1 {
		t.Errorf("free port %d, %v; want 1", port, err)
	}
	if err := os.Remove(device); err != nil {
		t.Fatal(err)
	}
	if port, err := d.FreePort(usb.SpeedHigh); err != nil || port != 0 {
		t.Errorf("free port %d, %v; want 0", port, err)
	}
}

func TestAttachAndDetach(t *testing.T) {
	kernel := vhcitest.New(t, 2, 2)
	d := open(t, kernel.Sysfs(), 0)
	fd, peer := pair(t)
	r := vhci.AttachRequest{Port: 6, SockFD: fd, DevID: 2<<16 | 9, Speed: usb.SpeedSuper}

	port := func() vhci.Port {
		t.Helper()
		ports, err := d.Ports(1)
		if err != nil {
			t.Fatal(err)
		}
		return ports[2]
	}
	if err := d.Attach(r); err != nil {
		t.Fatal(err)
	}
	if got, want := port(), (vhci.Port{Number: 6, Hub: vhci.HubSuper, Status: vhci.StatusNotAssigned}); got != want {
		t.Errorf("attached: %+v, want %+v", got, want)
	}
	kernel.Enumerate(6)
	want := vhci.Port{Number: 6, Hub: vhci.HubSuper, Status: vhci.StatusUsed, Speed: usb.SpeedSuper, DevID: r.DevID, SockFD: fd, BusID: "4-1"}
	if got := port(); got != want {
		t.Errorf("enumerated: %+v, want %+v", got, want)
	}
	if err := d.Detach(6); err != nil {
		t.Fatal(err)
	}
	if !port().Free() {
		t.Errorf("detached: %+v", port())
	}
	if n, err := peer.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the peer read %d, %v; want the end", n, err)
	}
}

func TestAttachErrors(t *testing.T) {
	kernel := vhcitest.New(t, 1, 2)
	testAttachErrors(t, open(t, kernel.Sysfs(), 0))
}

// testAttachErrors tries what the kernel refuses, on the fake and on itself. All
// ports must be free.
func testAttachErrors(t *testing.T, d *vhci.Driver) {
	fd, _ := pair(t)
	datagram, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(datagram)
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	taken := vhci.AttachRequest{Port: 1, SockFD: fd, Speed: usb.SpeedHigh}
	if err := d.Attach(taken); err != nil {
		t.Fatal(err)
	}
	takenBySuper := taken
	takenBySuper.Port = d.Geometry().Number(vhci.Place{Hub: vhci.HubSuper, Index: 1})

	for _, tt := range []struct {
		name string
		r    vhci.AttachRequest
		want syscall.Errno
	}{
		{"a port out of range", vhci.AttachRequest{Port: d.Geometry().Ports(), SockFD: fd, Speed: usb.SpeedHigh}, syscall.EINVAL},
		{"a negative port", vhci.AttachRequest{Port: -1, SockFD: fd, Speed: usb.SpeedHigh}, syscall.EINVAL},
		{"port 256 is not port 0", vhci.AttachRequest{Port: 256, SockFD: fd, Speed: usb.SpeedHigh}, syscall.EINVAL},
		{"no speed", vhci.AttachRequest{SockFD: fd}, syscall.EINVAL},
		{"a speed above super-plus", vhci.AttachRequest{SockFD: fd, Speed: 7}, syscall.EINVAL},
		{"a closed descriptor", vhci.AttachRequest{SockFD: 1 << 20, Speed: usb.SpeedHigh}, syscall.EINVAL},
		{"a negative descriptor", vhci.AttachRequest{SockFD: -1, Speed: usb.SpeedHigh}, syscall.EINVAL},
		{"a file", vhci.AttachRequest{SockFD: int(file.Fd()), Speed: usb.SpeedHigh}, syscall.EINVAL},
		{"a datagram socket", vhci.AttachRequest{SockFD: datagram, Speed: usb.SpeedHigh}, syscall.EINVAL},
		{"a taken port", taken, syscall.EBUSY},
		{"a taken port, named by its other half", takenBySuper, syscall.EBUSY},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before, err := d.AllPorts()
			if err != nil {
				t.Fatal(err)
			}
			err = d.Attach(tt.r)
			op, ok := errors.AsType[*vhci.OpError](err)
			if !ok || op.Op != "attach" || op.Port != tt.r.Port || op.Path != d.Path() {
				t.Errorf("%#v is not the OpError of attach", err)
			}
			if errno, ok := errors.AsType[syscall.Errno](err); !ok || errno != tt.want {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			if after, err := d.AllPorts(); err != nil || !cmp.Equal(before, after) {
				t.Errorf("the ports changed (%v):\n%s", err, cmp.Diff(before, after))
			}
		})
	}
	for _, port := range []int{0, d.Geometry().Ports(), 256, -1} {
		if err := d.Detach(port); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("detach of port %d, where nothing is: %v, want EINVAL", port, err)
		}
	}
	if err := d.Detach(taken.Port); err != nil {
		t.Error(err)
	}
}

// Until the kernel is done with a detach, a second one succeeds and an attach
// does not.
func TestEarlyDetachAndAttach(t *testing.T) {
	kernel := vhcitest.New(t, 1, 2)
	kernel.SlowDetach = true
	d := open(t, kernel.Sysfs(), 0)
	fd, _ := pair(t)
	r := vhci.AttachRequest{Port: 1, SockFD: fd, Speed: usb.SpeedHigh}
	if err := d.Attach(r); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.Detach(1); err != nil {
			t.Errorf("detach: %v", err)
		}
	}
	if err := d.Attach(r); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("early attach: %v, want EBUSY", err)
	}
	kernel.Finish(1)
	if err := d.Detach(1); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("detach of a free port: %v, want EINVAL", err)
	}
	if err := d.Attach(r); err != nil {
		t.Errorf("attach: %v", err)
	}
}

// The text that leaves by the system call, and its errno.
func TestWritesAreSystemCalls(t *testing.T) {
	root := tree(t, map[string]string{
		"vhci_hcd.0/nports": "2\n", "vhci_hcd.0/status": statusText(0, 1), "vhci_hcd.0/attach": "", "vhci_hcd.0/detach": "",
	})
	d := open(t, vhci.Sysfs{Root: root}, 0)
	if err := d.Attach(vhci.AttachRequest{Port: 1, SockFD: 7, DevID: 1<<16 | 2, Speed: usb.SpeedSuper}); err != nil {
		t.Fatal(err)
	}
	if err := d.Detach(1); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"attach": "1 7 65538 5", "detach": "1"} {
		if got, err := os.ReadFile(filepath.Join(d.Path(), name)); err != nil || string(got) != want {
			t.Errorf("%s got %q, %v; want %q", name, got, err, want)
		}
	}

	if err := os.Remove(filepath.Join(d.Path(), "attach")); err != nil {
		t.Fatal(err)
	}
	if err := d.Attach(vhci.AttachRequest{}); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("attach without the file: %v", err)
	}
}

// A full pipe answers as a controller that is not ready does. Through the
// runtime's poller this would wait for ever.
func TestEAGAINIsAnAnswer(t *testing.T) {
	root := tree(t, map[string]string{"vhci_hcd.0/nports": "2\n", "vhci_hcd.0/status": statusText(0, 1)})
	d := open(t, vhci.Sysfs{Root: root}, 0)
	path := filepath.Join(d.Path(), "attach")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for err == nil {
		_, err = unix.Write(fd, make([]byte, 4096))
	}
	if err := d.Attach(vhci.AttachRequest{Speed: usb.SpeedHigh}); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("attach: %v, want EAGAIN", err)
	}
}

func TestErrorTexts(t *testing.T) {
	for want, err := range map[string]error{
		"vhci: attach port 3 of /sys/devices/platform/vhci_hcd.0: device or resource busy (the port is taken)": &vhci.OpError{
			Op: "attach", Path: "/sys/devices/platform/vhci_hcd.0", Port: 3, Err: syscall.EBUSY,
		},
		"vhci: detach port 0 of x: invalid argument (there is no such port, or nothing is attached to it)": &vhci.OpError{
			Op: "detach", Path: "x", Err: syscall.EINVAL,
		},
		"vhci: status.2 of x: transport endpoint is not connected (the daemon that served this directory is gone)": &vhci.OpError{
			Op: "status.2", Path: "x", Port: -1, Err: syscall.ENOTCONN,
		},
		"vhci: open of x: vhci_hcd is not loaded: modprobe vhci-hcd, or create the controller with --driver user": &vhci.OpError{
			Op: "open", Path: "x", Port: -1, Err: vhci.ErrNotLoaded,
		},
	} {
		if got := err.Error(); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
	for _, err := range []error{vhci.ErrNotLoaded, vhci.ErrNoController} {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v is not fs.ErrNotExist", err)
		}
	}
}

// A connection that is a Go net.Conn is attached by the descriptor it lends.
func TestAttachConn(t *testing.T) {
	kernel := vhcitest.New(t, 1, 1)
	d := open(t, kernel.Sysfs(), 0)
	conn, _ := must.Connect(t)
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var attachErr error
	if err := raw.Control(func(fd uintptr) {
		attachErr = d.Attach(vhci.AttachRequest{SockFD: int(fd), DevID: 1, Speed: usb.SpeedFull})
	}); err != nil || attachErr != nil {
		t.Fatal(err, attachErr)
	}
}
