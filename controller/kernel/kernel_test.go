//go:build linux

package kernel_test

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/controller/kernel"
	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/vhci"
)

func TestAttachUseDetach(t *testing.T) {
	must.NotLeak(t)
	h := newHost(t, 1, 4)
	c, events := newController(t, newDriver(t, h, must.TempDir(t)))
	p, _ := export(t, "scanner")
	ready := false
	p.Judge = func(d *usb.Descriptors) error {
		if d.Product() != "usbns bar-code scanner" {
			t.Errorf("judged is %q", d.Product())
		}
		return nil
	}
	p.Ready = func(a controller.Attachment) error {
		ready = true
		if h.Authorized(h.port()) {
			t.Error("drivers have the device before it is ready")
		}
		if _, err := os.Stat(a.Path()); err != nil {
			t.Error(err)
		}
		return nil
	}
	port, err := c.Attach(t.Context(), 1, p)
	must.OK(t, err)
	if port != 1 || !ready {
		t.Errorf("port %d, ready %v", port, ready)
	}
	if e := wantEvent(t, events, controller.Attached); e.Port.ProductName != "usbns bar-code scanner" {
		t.Errorf("attached is %+v", e.Port)
	}
	kernelPort := h.port()
	h.works(t, kernelPort)
	must.OK(t, c.Detach(1))
	if e := wantEvent(t, events, controller.Detached); e.Err != nil {
		t.Errorf("it went for %v", e.Err)
	}
	if h.Socket(kernelPort) != nil {
		t.Error("the kernel still has it")
	}
}

// lines is a log.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	l <- string(b)
	return len(b), nil
}

func TestHowADeviceEnds(t *testing.T) {
	h := newHost(t, 1, 4)
	dir := must.TempDir(t)
	log := make(lines, 10)
	d := kernel.New(kernel.Options{
		Dir: dir, Sysfs: h.Sysfs(), EnumerateTimeout: patient, KernelTimeout: patient,
		Log: slog.New(slog.NewTextHandler(log, nil)),
	})
	t.Cleanup(func() { must.OK(t, d.Close()) })
	c, events := newController(t, d)
	attach := func(t *testing.T) func() {
		t.Helper()
		p, stop := export(t, "scanner")
		_, err := c.Attach(t.Context(), 0, p)
		must.OK(t, err)
		wantEvent(t, events, controller.Attached)
		return stop
	}
	t.Run("the exporter goes", func(t *testing.T) {
		attach(t)()
		if e := wantEvent(t, events, controller.Detached); e.Err == nil {
			t.Error("nobody knows why it went")
		}
	})
	t.Run("root detaches the kernel's port", func(t *testing.T) {
		attach(t)
		ports, err := h.Sysfs().Open(0)
		must.OK(t, err)
		defer ports.Close()
		imp := h.device(h.port())
		imp.Close() // what a detach does to the socket
		if e := wantEvent(t, events, controller.Detached); e.Err != nil {
			t.Errorf("it went for %v", e.Err)
		}
	})
	t.Run("the worker panics", func(t *testing.T) {
		attach(t)
		killWorker(t, filepath.Join(dir, "0"))
		if e := wantEvent(t, events, controller.Detached); e.Err == nil || !strings.Contains(e.Err.Error(), "worker is gone") {
			t.Errorf("it went for %v", e.Err)
		}
		var line string
		for !strings.Contains(line, "worker has failed") { // others are about this machine
			select {
			case line = <-log:
			case <-time.After(patient):
				t.Fatal("nothing is logged")
			}
		}
		const want = `level=WARN msg="a worker has failed" controller=vhci_hcd.0 exit="exit status 2" output="SIGQUIT: quit\n`
		if !strings.Contains(line, want) || strings.Count(line, "\n") != 1 {
			t.Errorf("logged is\n%s, want\n%s", line, want)
		}
	})
	attach(t) // with a new worker
	h.works(t, h.port())
}

// A module that is unloaded takes its devices with it, and what is loaded then is
// not used.
func TestUnloaded(t *testing.T) {
	must.NotLeak(t)
	h := newHost(t, 1, 4)
	d := newDriver(t, h, must.TempDir(t))
	p, _ := export(t, "scanner")
	released := make(chan struct{})
	p.Released = func() { close(released) }
	a, err := d.Attach(t.Context(), p)
	must.OK(t, err)
	h.Unload()
	must.Await(t, "end of the device", a.Done())
	must.Await(t, "release of the port", released)
	p, _ = export(t, "scanner")
	if _, err := d.Attach(t.Context(), p); err == nil || !strings.Contains(err.Error(), "restart the daemon") {
		t.Errorf("error %v", err)
	}
}

// All controllers share the ports of the kernel.
func TestPortsAreShared(t *testing.T) {
	must.NotLeak(t)
	h := newHost(t, 2, 1)
	d := newDriver(t, h, must.TempDir(t))
	a, _ := newController(t, d)
	b, _ := newController(t, d)
	for _, c := range []*controller.Controller{a, b} {
		p, _ := export(t, "scanner")
		_, err := c.Attach(t.Context(), 0, p)
		must.OK(t, err)
	}
	p, _ := export(t, "scanner")
	_, err := b.Attach(t.Context(), 1, p)
	must.Is(t, err, syscall.ENOSPC)
	if err == nil || !strings.Contains(err.Error(), "no free kernel port") {
		t.Errorf("error %v", err)
	}
}

// What showed a device is taken back when it is gone and before its port is
// another's.
func TestReleasedBeforeThePortIsFree(t *testing.T) {
	must.NotLeak(t)
	h := newHost(t, 1, 1)
	d := newDriver(t, h, must.TempDir(t))
	p, _ := export(t, "scanner")
	early, _ := export(t, "scanner")
	late, _ := export(t, "scanner")
	var path string
	released := false
	p.Released = func() {
		released = true
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("released while the device is there: %v", err)
		}
		if _, err := d.Attach(t.Context(), early); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("attach to the port before it is free: %v", err)
		}
	}
	a, err := d.Attach(t.Context(), p)
	must.OK(t, err)
	path = a.Path()
	a.Detach()
	if !released {
		t.Error("not released")
	}
	a, err = d.Attach(t.Context(), late)
	must.OK(t, err)
	a.Detach()
}

// A port is not leased again before its device has left sysfs, and one that
// others use is left alone.
func TestPortsOfOthers(t *testing.T) {
	h := newHost(t, 1, 2)
	others, err := h.Sysfs().Open(0)
	must.OK(t, err)
	defer others.Close()
	h.hooked = func(int) bool { return true }
	attachByHand(t, others, 0)
	h.hooked = nil
	c, events := newController(t, newDriver(t, h, must.TempDir(t)))
	p, _ := export(t, "scanner")
	_, err = c.Attach(t.Context(), 0, p)
	must.OK(t, err)
	wantEvent(t, events, controller.Attached)
	if got := h.port(); got != 1 {
		t.Errorf("kernel port %d, 0 is in use", got)
	}
	must.OK(t, c.Detach(0))
	wantEvent(t, events, controller.Detached)
	if h.Socket(0) == nil {
		t.Error("the port of others was detached")
	}
	h.Enumerate(0)
	hubs, err := others.RootHubs(0)
	must.OK(t, err)
	// Free, and with a device that has not left yet.
	h.Finish(0)
	left := filepath.Join(hubs[0].Path(), hubs[0].BusID(0))
	must.OK(t, os.Mkdir(left, 0o755))
	p, _ = export(t, "scanner")
	_, err = c.Attach(t.Context(), 0, p)
	must.OK(t, err)
	if got := h.port(); got != 1 {
		t.Errorf("kernel port %d, the device of 0 is still there", got)
	}
}

func TestRefused(t *testing.T) {
	must.NotLeak(t)
	h := newHost(t, 1, 1)
	c, _ := newController(t, newDriver(t, h, must.TempDir(t)))
	no := errors.New("not here")
	for name, refuse := range map[string]func(*controller.Plug){
		"judged": func(p *controller.Plug) { p.Judge = func(*usb.Descriptors) error { return no } },
		"not ready": func(p *controller.Plug) {
			p.Ready = func(a controller.Attachment) error {
				t.Cleanup(func() { must.Await(t, "Done of what was refused", a.Done()) })
				return no
			}
		},
	} {
		p, _ := export(t, "scanner")
		refuse(&p)
		_, err := c.Attach(t.Context(), 0, p)
		must.Is(t, err, no)
		must.Is(t, err, syscall.EACCES)
		if h.Socket(0) != nil {
			t.Errorf("%s: the kernel has it", name)
		}
	}
	p, _ := export(t, "scanner")
	_, err := c.Attach(t.Context(), 0, p)
	must.OK(t, err)
}

func TestNotLoaded(t *testing.T) {
	d := kernel.New(kernel.Options{Dir: must.TempDir(t), Sysfs: vhci.Sysfs{Root: t.TempDir()}})
	defer d.Close()
	for name, driver := range map[string]controller.Driver{"checked": d, "direct": d.Direct()} {
		c, _ := newController(t, driver)
		p, _ := export(t, "scanner")
		_, err := c.Attach(t.Context(), 0, p)
		if err == nil || !strings.Contains(err.Error(), "vhci_hcd is not loaded: modprobe vhci-hcd, or create the controller with --driver user") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A device of this process needs no worker.
func TestLocalDevice(t *testing.T) {
	must.NotLeak(t)
	h := newHost(t, 1, 1)
	c, events := newController(t, newDriver(t, h, must.TempDir(t)))
	dev, err := emulate.Open("scanner", emulate.Options{Speed: usb.SpeedHigh})
	must.OK(t, err)
	_, err = c.Attach(t.Context(), 0, controller.Plug{Device: dev, DevID: devid})
	must.OK(t, err)
	wantEvent(t, events, controller.Attached)
	h.works(t, h.port())
	must.OK(t, c.Detach(0))
	wantEvent(t, events, controller.Detached)
	must.Await(t, "the device's end", dev.Gone())
}

// A device for which there is no port is its owner's again when that is told.
func TestLocalDeviceWithoutPort(t *testing.T) {
	must.NotLeak(t)
	h := newHost(t, 1, 1)
	d := newDriver(t, h, must.TempDir(t))
	p, _ := export(t, "scanner")
	a, err := d.Attach(t.Context(), p)
	must.OK(t, err)
	defer a.Detach()
	dev := &resets{Device: newDevice(t, "loopback")}
	_, err = d.Attach(t.Context(), controller.Plug{Device: dev, DevID: devid, Speed: dev.Speed()})
	must.Is(t, err, syscall.ENOSPC)
	if !dev.reset.Load() {
		t.Error("the device is still being served")
	}
}

// resets tells whether a device was reset, as it is when it was served.
type resets struct {
	usb.Device
	reset atomic.Bool
}

func (d *resets) Reset(ctx context.Context) error {
	defer d.reset.Store(true)
	return d.Device.Reset(ctx)
}

// When the driver ends and comes again, devices have worked all the time.
func TestRestore(t *testing.T) {
	must.NotLeak(t)
	h := newHost(t, 1, 4)
	dir := must.TempDir(t)
	first := kernel.New(kernel.Options{Dir: dir, Sysfs: h.Sysfs()})
	attach := func(index int) controller.Attachment {
		t.Helper()
		p, _ := export(t, "scanner")
		p.Controller = index
		a, err := first.Attach(t.Context(), p)
		must.OK(t, err)
		return a
	}
	kept := attach(0)
	port := h.port()
	forgotten := attach(1)
	old := attach(2)
	old.Detach()
	for _, a := range []controller.Attachment{kept, forgotten} {
		a.Leave()
		must.Await(t, "Done of what was left", a.Done())
	}
	must.OK(t, first.Close())
	h.works(t, port)

	d := newDriver(t, h, dir)
	judged := 0
	a, err := d.Restore(t.Context(), controller.Plug{Judge: func(*usb.Descriptors) error { judged++; return nil }}, kept.Saved())
	must.OK(t, err)
	if a.Path() != kept.Path() || a.Descriptors().Product() != kept.Descriptors().Product() || judged != 1 {
		t.Errorf("%s with %q, judged %d times", a.Path(), a.Descriptors().Product(), judged)
	}
	for name, saved := range map[string][]byte{
		"twice": kept.Saved(), "gone": old.Saved(), "nothing": nil, "not ours": []byte(`{"worker":"x"}`), "no JSON": []byte("?"),
	} {
		index := 0
		if name == "gone" {
			index = 2
		}
		if _, err := d.Restore(t.Context(), controller.Plug{Controller: index}, saved); !errors.Is(err, controller.ErrNotRestored) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must.OK(t, d.Sweep(t.Context()))
	h.works(t, port)
	ports, err := h.Sysfs().Open(0)
	must.OK(t, err)
	defer ports.Close()
	for deadline := time.Now().Add(patient); ; time.Sleep(5 * time.Millisecond) {
		list, err := ports.Ports(0)
		must.OK(t, err)
		if list[1-port].Free() {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("what nobody restored is still there: %+v", list)
		}
	}
	a.Detach()
	must.Await(t, "the end", a.Done())
	if h.Socket(port) != nil {
		t.Error("the kernel still has the device")
	}
}

// Another device on the port means that ours is not to be found, and goes.
func TestRestoreOfAnotherDevice(t *testing.T) {
	h := newHost(t, 1, 1)
	dir := must.TempDir(t)
	first := kernel.New(kernel.Options{Dir: dir, Sysfs: h.Sysfs()})
	p, _ := export(t, "scanner")
	kept, err := first.Attach(t.Context(), p)
	must.OK(t, err)
	kept.Leave()
	must.OK(t, first.Close())
	// The same name, and another directory.
	must.OK(t, os.Rename(kept.Path(), kept.Path()+".old"))
	must.OK(t, os.Mkdir(kept.Path(), 0o755))
	must.OK(t, os.WriteFile(kept.Path()+"/driver", nil, 0o644))
	d := newDriver(t, h, dir)
	imp := h.device(0)
	if _, err := d.Restore(t.Context(), controller.Plug{}, kept.Saved()); !errors.Is(err, controller.ErrNotRestored) {
		t.Errorf("error %v", err)
	}
	must.Await(t, "the end of what was ours", imp.Gone())
}

func TestContextEndsAnAttach(t *testing.T) {
	must.NotLeak(t)
	h := newHost(t, 1, 1)
	d := newDriver(t, h, must.TempDir(t))
	p, _ := export(t, "scanner")
	ctx, cancel := context.WithCancel(t.Context())
	h.hooked = func(port int) bool { // a kernel that gets no further
		cancel()
		go func() {
			b := make([]byte, 1)
			for {
				if n, err := h.Socket(port).Read(b); n == 0 || err != nil {
					break
				}
			}
			h.Finish(port)
		}()
		return true
	}
	_, err := d.Attach(ctx, p)
	must.Is(t, err, context.Canceled)
}
