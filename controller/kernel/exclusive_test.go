//go:build linux

package kernel_test

import (
	"strings"
	"syscall"
	"testing"

	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/controller/kernel"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/policy"
)

// create makes a controller of d in a table.
func create(table *controller.Table, d *kernel.Driver, exclusive bool) (*controller.Controller, error) {
	cfg := controller.Config{Driver: d, Policy: policy.Open()}
	if exclusive {
		cfg.Exclusive = d
	}
	made, err := table.Create(cfg, 1)
	if err != nil {
		return nil, err
	}
	return made[0], nil
}

// attach attaches a device to port 0.
func attach(t testing.TB, c *controller.Controller) error {
	t.Helper()
	p, _ := export(t, "scanner")
	_, err := c.Attach(t.Context(), 0, p)
	return err
}

func wantText(t testing.TB, err error, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("error %v, want %q", err, text)
		}
	}
}

// Of two controllers of the kernel, with one port of high speed each.
func TestExclusive(t *testing.T) {
	must.NotLeak(t)
	h := newHost(t, 2, 1)
	d := newDriver(t, h, must.TempDir(t))
	events := make(chan controller.Event, 1000)
	table := &controller.Table{OnEvent: func(e controller.Event) { events <- e }}
	t.Cleanup(table.Close)
	const first, second = 0, 2 // the kernel's ports
	inUse := func(ports ...int) {
		t.Helper()
		for _, port := range []int{first, second} {
			want := false
			for _, p := range ports {
				want = want || p == port
			}
			if got := h.device(port) != nil; got != want {
				t.Errorf("kernel port %d is in use: %v", port, got)
			}
		}
	}
	detach := func(c *controller.Controller) {
		t.Helper()
		must.OK(t, c.Detach(0))
		wantEvent(t, events, controller.Detached)
	}
	shared, err := create(table, d, false)
	must.OK(t, err)
	must.OK(t, attach(t, shared))
	wantEvent(t, events, controller.Attached)

	own, err := create(table, d, true)
	must.OK(t, err)
	if cfg := own.Config(); cfg.Kernel != 1 || cfg.HubPorts != 1 {
		t.Errorf("the kernel's controller is %d with %d ports", cfg.Kernel, cfg.HubPorts)
	}
	hubs, err := own.RootHubs()
	if err != nil || len(hubs) != 2 || !strings.HasSuffix(hubs[0], "/vhci_hcd.1/usb3") || !strings.HasSuffix(hubs[1], "/vhci_hcd.1/usb4") {
		t.Errorf("root hubs %v, %v", hubs, err)
	}
	inUse(first)

	// None is left, for another that is exclusive or for one that is not.
	_, err = create(table, d, true)
	must.Is(t, err, syscall.ENOSPC)
	wantText(t, err, "none of the kernel's 2 controllers is free: vhci_hcd.0 is shared by 0, vhci_hcd.1 is controller 1's (delete one, ")
	other, err := create(table, d, false)
	must.OK(t, err)
	err = attach(t, other)
	must.Is(t, err, syscall.ENOSPC)
	wantText(t, err, "no free kernel port for a device of high speed beside 1 exclusive controllers")

	// It goes nowhere else, not even where its own is full.
	detach(shared)
	must.OK(t, attach(t, own))
	wantEvent(t, events, controller.Attached)
	inUse(second)
	p, _ := export(t, "scanner")
	p.Controller = own.Index()
	_, err = d.Attach(t.Context(), p)
	must.Is(t, err, syscall.ENOSPC)
	must.OK(t, attach(t, other))
	wantEvent(t, events, controller.Attached)
	inUse(first, second)
	detach(other)
	late, err := create(table, d, true)
	must.OK(t, err)
	if k := late.Config().Kernel; k != 0 {
		t.Errorf("the kernel's controller is %d", k)
	}
	wantText(t, attach(t, other), "beside 2 exclusive controllers")

	// When it is deleted, so is what it has, and others can have it.
	must.OK(t, table.Delete(own))
	wantEvent(t, events, controller.Detached)
	must.OK(t, attach(t, other))
	wantEvent(t, events, controller.Attached)
	inUse(second)
	detach(other)
	again, err := create(table, d, true)
	must.OK(t, err)
	if k := again.Config().Kernel; k != 1 {
		t.Errorf("the kernel's controller is %d", k)
	}
}

// What root uses by hand, and what did not start, is not reserved.
func TestExclusiveBesideOthers(t *testing.T) {
	h := newHost(t, 3, 1)
	h.Stop(1)
	others, err := h.Sysfs().Open(0)
	must.OK(t, err)
	defer others.Close()
	h.hooked = func(int) bool { return true }
	attachByHand(t, others, 4)
	d := newDriver(t, h, must.TempDir(t))
	table := new(controller.Table)
	t.Cleanup(table.Close)
	c, err := create(table, d, true)
	must.OK(t, err)
	if k := c.Config().Kernel; k != 0 {
		t.Errorf("the kernel's controller is %d", k)
	}
	_, err = create(table, d, true)
	wantText(t, err, "vhci_hcd.0 is controller 0's, vhci_hcd.1 did not start, for want of USB buses, vhci_hcd.2 is used by others")
	if n := len(table.All()); n != 1 {
		t.Errorf("%d controllers", n)
	}
	_, err = table.Create(controller.Config{Driver: d, Exclusive: d, HubPorts: 4}, 1)
	must.Is(t, err, syscall.EINVAL)
}

// A later process keeps what is reserved, whoever asks first.
func TestExclusiveOutlivesTheProcess(t *testing.T) {
	must.NotLeak(t)
	h := newHost(t, 2, 2)
	dir := must.TempDir(t)
	first := kernel.New(kernel.Options{Dir: dir, Sysfs: h.Sysfs()})
	table := new(controller.Table)
	own, err := create(table, first, true)
	must.OK(t, err)
	shared, err := create(table, first, false)
	must.OK(t, err)
	for _, c := range []*controller.Controller{own, shared} {
		must.OK(t, attach(t, c))
	}
	ports := [][]controller.SavedPort{own.Saved(), shared.Saved()}
	table.Close()
	must.OK(t, first.Close())

	d := newDriver(t, h, dir)
	later := new(controller.Table)
	t.Cleanup(later.Close)
	cfg := own.Config()
	cfg.Driver, cfg.Exclusive = d, d
	c, err := later.Restore(0, cfg)
	must.OK(t, err)
	_, err = later.Restore(2, cfg)
	must.Is(t, err, syscall.EEXIST)
	wantText(t, err, "the kernel's vhci_hcd.1 is controller 0's")
	for _, err := range c.RestorePorts(t.Context(), ports[0], nil) {
		t.Error(err)
	}
	h.works(t, 4)

	// A device that is on another's, whatever the state says, is not restored.
	cfg.Kernel = 0
	_, err = later.Restore(2, cfg)
	must.OK(t, err)
	c, err = later.Restore(1, controller.Config{Driver: d, HubPorts: 2, Policy: policy.Open()})
	must.OK(t, err)
	failed := c.RestorePorts(t.Context(), ports[1], nil)
	if len(failed) != 1 {
		t.Fatalf("restored on another's controller: %v", failed)
	}
	must.Is(t, failed[0], controller.ErrNotRestored)
	wantText(t, failed[0], "controller 1 has no devices on the kernel's vhci_hcd.0")
}
