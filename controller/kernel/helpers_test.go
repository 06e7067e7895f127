//go:build linux

package kernel_test

import (
	"context"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/controller/kernel"
	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/internal/usbiptest"
	"github.com/usbns/usbns/policy"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
	"github.com/usbns/usbns/vhci"
	"github.com/usbns/usbns/vhci/vhcitest"
	"github.com/usbns/usbns/worker"
)

func TestMain(m *testing.M) {
	if worker.Called() {
		os.Exit(worker.Main())
	}
	if owner != nil && os.Getenv(ownerEnv) != "" {
		os.Exit(owner())
	}
	os.Exit(m.Run())
}

// owner is what a process does that a test starts to kill it.
var owner func() int

const ownerEnv = "USBNS_TEST_OWNER"

const (
	devid   = 0x10002
	patient = time.Minute
)

// A host is a fake kernel that uses what is attached to it.
type host struct {
	t testing.TB
	*vhcitest.Kernel

	mu      sync.Mutex
	devices map[int]*usbip.Importer // by port
	hooked  func(port int) bool     // in the place of use, if it returns true
	running sync.WaitGroup
}

func newHost(t testing.TB, controllers, hubPorts int) *host {
	t.Helper()
	h := &host{t: t, Kernel: vhcitest.New(t, controllers, hubPorts), devices: make(map[int]*usbip.Importer)}
	h.OnAttach = h.use
	t.Cleanup(h.running.Wait)
	return h
}

// use enumerates a port's device as the kernel does, and lets go of it when its
// peer does.
func (h *host) use(port int) {
	if h.hooked != nil && h.hooked(port) {
		return
	}
	fd, err := unix.FcntlInt(h.Socket(port).Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		h.t.Error(err)
		return
	}
	f := os.NewFile(uintptr(fd), "kernel")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		h.t.Error(err)
		return
	}
	h.running.Go(func() {
		imp, err := usbip.NewImporter(context.Background(), conn, devid, usb.SpeedHigh, nil)
		if err != nil {
			conn.Close()
			h.Finish(port)
			return
		}
		h.mu.Lock()
		h.devices[port] = imp
		h.mu.Unlock()
		h.Enumerate(port)
		<-imp.Gone()
		h.mu.Lock()
		delete(h.devices, port)
		h.mu.Unlock()
		h.Finish(port)
	})
}

// device returns what the kernel's drivers have of a port.
func (h *host) device(port int) *usbip.Importer {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.devices[port]
}

// port returns the only port that is in use.
func (h *host) port() int {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.devices) != 1 {
		h.t.Fatalf("%d ports are in use", len(h.devices))
	}
	for port := range h.devices {
		return port
	}
	panic("unreachable")
}

// works makes the device on a port do something that only it can.
func (h *host) works(t testing.TB, port int) {
	t.Helper()
	d := h.device(port)
	if d == nil {
		t.Fatalf("no device on port %d", port)
	}
	if _, err := usb.ControlTransfer(t.Context(), d, usb.SetConfiguration(1), nil); err != nil {
		t.Fatalf("the device on port %d: %v", port, err)
	}
	if !h.Authorized(port) {
		t.Errorf("the device on port %d is not authorized", port)
	}
}

func newDriver(t testing.TB, h *host, dir string) *kernel.Driver {
	t.Helper()
	// Not for a machine that is slow: for a device that does nothing.
	d := kernel.New(kernel.Options{Dir: dir, Sysfs: h.Sysfs(), EnumerateTimeout: 20 * time.Second, KernelTimeout: 40 * time.Second})
	t.Cleanup(func() { must.OK(t, d.Close()) })
	return d
}

// newController makes a controller of a driver, in a table of its own.
func newController(t testing.TB, d controller.Driver) (*controller.Controller, <-chan controller.Event) {
	t.Helper()
	events := make(chan controller.Event, 1000)
	table := &controller.Table{OnEvent: func(e controller.Event) { events <- e }}
	t.Cleanup(table.Close)
	made, err := table.Create(controller.Config{Driver: d, Policy: policy.Open()}, 1)
	must.OK(t, err)
	return made[0], events
}

func wantEvent(t testing.TB, events <-chan controller.Event, kind controller.EventKind) controller.Event {
	t.Helper()
	select {
	case e := <-events:
		if e.Kind != kind {
			t.Fatalf("event %d (%v), want %d", e.Kind, e.Err, kind)
		}
		return e
	case <-time.After(patient):
		t.Fatalf("no event after %v", patient)
	}
	panic("unreachable")
}

// export serves a device, and returns the importer's end as a plug and what ends
// it.
func export(t testing.TB, kind string) (controller.Plug, func()) {
	t.Helper()
	d, err := emulate.Open(kind, emulate.Options{Speed: usb.SpeedHigh})
	must.OK(t, err)
	t.Cleanup(func() { d.Close() })
	here, peer := must.Connect(t)
	return plug(here), usbiptest.Serve(t, peer, devid, d)
}

func plug(here net.Conn) controller.Plug {
	return controller.Plug{
		Conn: here, Speed: usb.SpeedHigh, DevID: devid,
		From: vhci.Record{Host: "shop", Port: "3240", BusID: "1-4"},
	}
}

// killWorker has the process that listens on a socket end as if it panicked.
func killWorker(t testing.TB, path string) {
	t.Helper()
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Net: "unixpacket", Name: path})
	must.OK(t, err)
	defer c.Close()
	raw, err := c.SyscallConn()
	must.OK(t, err)
	must.OK(t, raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		must.OK(t, err)
		if cred.Pid == int32(os.Getpid()) {
			t.Fatal("the worker does not listen itself")
		}
		must.OK(t, unix.Kill(int(cred.Pid), unix.SIGQUIT))
	}))
}

// attachByHand puts what says nothing into a port of the kernel, past the driver.
func attachByHand(t *testing.T, kernel *vhci.Driver, port int) {
	t.Helper()
	here, _ := must.Connect(t)
	raw, err := here.SyscallConn()
	must.OK(t, err)
	must.OK(t, raw.Control(func(fd uintptr) {
		must.OK(t, kernel.Attach(vhci.AttachRequest{Port: port, SockFD: int(fd), DevID: 7, Speed: usb.SpeedHigh}))
	}))
}
