package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/policy"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/vhci"
)

// A kernel stands for what holds devices while processes come and go.
type kernel struct {
	mu   sync.Mutex
	held map[string]usb.Device
	// busy, if not nil, holds up each Detach until it is closed.
	busy chan struct{}
}

func (k *kernel) Attach(_ context.Context, p Plug) (Attachment, error) {
	k.mu.Lock()
	if k.held == nil {
		k.held = make(map[string]usb.Device)
	}
	key := fmt.Sprintf("lease %d", len(k.held))
	k.held[key] = p.Device
	k.mu.Unlock()
	return k.let(p, key)
}

func (k *kernel) Restore(_ context.Context, p Plug, saved []byte) (Attachment, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held[string(saved)] == nil {
		return nil, fmt.Errorf("%w: %s", ErrNotRestored, saved)
	}
	return k.let(p, string(saved))
}

func (k *kernel) let(p Plug, key string) (Attachment, error) {
	a := &held{kernel: k, key: key, dev: k.held[key], done: make(chan struct{})}
	if p.Ready != nil {
		if err := p.Ready(a); err != nil {
			delete(k.held, key)
			return nil, fmt.Errorf("%w: %w", ErrRefused, err)
		}
	}
	return a, nil
}

type held struct {
	kernel *kernel
	key    string
	dev    usb.Device
	once   sync.Once
	done   chan struct{}
}

func (h *held) Descriptors() *usb.Descriptors { return h.dev.Descriptors() }
func (h *held) Device() usb.Device            { return nil }
func (h *held) Path() string                  { return "" }
func (h *held) Saved() []byte                 { return []byte(h.key) }
func (h *held) Done() <-chan struct{}         { return h.done }
func (h *held) Err() error                    { return nil }
func (h *held) Leave()                        { h.once.Do(func() { close(h.done) }) }

func (h *held) Detach() {
	if h.kernel.busy != nil {
		<-h.kernel.busy
	}
	h.kernel.mu.Lock()
	delete(h.kernel.held, h.key)
	h.kernel.mu.Unlock()
	h.Leave()
}

// A shelf keeps what tables save, as a disk does.
type shelf struct {
	mu   sync.Mutex
	kept map[int][]SavedPort
	full bool
}

func (s *shelf) table(t *testing.T) *Table {
	table := &Table{
		Save: func(c *Controller) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.full {
				return syscall.ENOSPC
			}
			if s.kept == nil {
				s.kept = make(map[int][]SavedPort)
			}
			s.kept[c.Index()] = c.Saved()
			return nil
		},
		Forget: func(index int) {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.kept, index)
		},
	}
	t.Cleanup(table.Close)
	return table
}

func create(t *testing.T, table *Table, name string, d Driver) *Controller {
	t.Helper()
	made, err := table.Create(Config{Name: name, Driver: d, Policy: policy.Open()}, 1)
	must.OK(t, err)
	return made[0]
}

func TestRestore(t *testing.T) {
	must.NotLeak(t)
	var (
		k    kernel
		disk shelf
	)
	from := vhci.Record{Host: "shop", Port: "3240", BusID: "1-4"}
	first := disk.table(t)
	create(t, first, "gone", &k)
	c := create(t, first, "pad", &k)
	must.OK(t, first.Delete(first.Controller(0)))
	_, err := c.Attach(t.Context(), 2, Plug{Device: newScanner(t, usb.SpeedFull), DevID: testDevID, From: from})
	must.OK(t, err)
	_, err = c.Attach(t.Context(), 5, Plug{Device: newScanner(t, usb.SpeedFull), DevID: testDevID})
	must.OK(t, err)
	before := c.Ports()
	first.Close()
	if len(k.held) != 2 {
		t.Fatalf("%d devices are held after the first process, not 2", len(k.held))
	}
	if len(disk.kept) != 1 || len(disk.kept[1]) != 2 {
		t.Fatalf("on disk is %+v", disk.kept)
	}

	second := disk.table(t)
	c, err = second.Restore(1, Config{Name: "pad", HubPorts: DefaultHubPorts, Driver: &k, Policy: policy.Open()})
	must.OK(t, err)
	if errs := c.RestorePorts(t.Context(), disk.kept[1], nil); errs != nil {
		t.Fatal(errs)
	}
	for i := range before {
		before[i].SockFD = c.Ports()[i].SockFD // numbers of a process that is no more
	}
	if diff := cmp.Diff(before, c.Ports()); diff != "" {
		t.Errorf("ports are other than before:\n%s", diff)
	}
	if second.ByName("pad") != c || second.Controller(1) != c || second.Controller(0) != nil {
		t.Error("the controller is not found under its name and index alone")
	}
	if other := create(t, second, "new", &k); other.Index() != 0 {
		t.Errorf("the index that is free is 0, not %d", other.Index())
	}
	must.OK(t, c.Detach(2))
	must.OK(t, second.Delete(second.Controller(1)))
	if len(k.held) != 0 || len(disk.kept[1]) != 0 {
		t.Errorf("left are %v, and on disk %v", k.held, disk.kept[1])
	}
}

// The process ends while devices are on their way: all that are to stay are
// Saved, and the one that was detached does not come back.
func TestDetachIsNotForgotten(t *testing.T) {
	must.NotLeak(t)
	var (
		k    = kernel{busy: make(chan struct{})}
		disk shelf
	)
	c := create(t, disk.table(t), "pad", &k)
	t.Cleanup(func() { close(k.busy) })
	for port := range 3 {
		_, err := c.Attach(t.Context(), port, Plug{Device: newScanner(t, usb.SpeedFull)})
		must.OK(t, err)
	}
	must.OK(t, c.Detach(1))
	kept := disk.kept[0]
	if len(kept) != 3 || kept[0].Ending || !kept[1].Ending || kept[2].Ending {
		t.Fatalf("on disk is %+v", kept)
	}

	var later shelf
	second, err := later.table(t).Restore(0, c.Config())
	must.OK(t, err)
	errs := second.RestorePorts(t.Context(), kept, func(Attachment) error {
		later.mu.Lock()
		defer later.mu.Unlock()
		if len(later.kept[0]) < 2 {
			t.Errorf("when one is let in, on disk is %+v", later.kept)
		}
		return nil
	})
	if len(errs) != 1 || !strings.Contains(errs[0].Error(), "detached") {
		t.Errorf("errors %v", errs)
	}
	if p := second.Ports(); p[0].Free() || !p[1].Free() || p[2].Free() {
		t.Errorf("ports %+v", p[:3])
	}
	if len(k.held) != 2 || len(later.kept[0]) != 2 {
		t.Errorf("%d devices are held, and on disk is %+v", len(k.held), later.kept)
	}
}

func TestNotRestored(t *testing.T) {
	must.NotLeak(t)
	var (
		k    kernel
		disk shelf
	)
	table := disk.table(t)
	c, err := table.Restore(0, Config{HubPorts: 2, Driver: &k, Policy: policy.Open()})
	must.OK(t, err)
	errs := c.RestorePorts(t.Context(), []SavedPort{
		{Port: 1, Speed: usb.SpeedFull, Saved: []byte("nonesuch")},
		{Port: 4, Speed: usb.SpeedFull},
		{Port: -1, Speed: usb.SpeedFull},
		{Port: 0, Speed: 17},
	}, nil)
	if len(errs) != 4 || !errors.Is(errors.Join(errs...), ErrNotRestored) {
		t.Errorf("errors %v", errs)
	}
	wantStatus(t, c, idle(2))
}

func TestBadRestore(t *testing.T) {
	var table Table
	cfg := Config{Name: "pad", HubPorts: 1, Driver: &kernel{}}
	_, err := table.Restore(3, cfg)
	must.OK(t, err)
	for name, tt := range map[string]struct {
		index int
		cfg   Config
		want  syscall.Errno
	}{
		"index twice":    {3, Config{HubPorts: 1, Driver: &kernel{}}, syscall.EEXIST},
		"name twice":     {4, cfg, syscall.EEXIST},
		"negative index": {-1, cfg, syscall.EINVAL},
		"huge index":     {MaxControllers, cfg, syscall.EINVAL},
		"no driver":      {4, Config{HubPorts: 1}, syscall.EINVAL},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := table.Restore(tt.index, tt.cfg)
			wantErrno(t, err, tt.want)
		})
	}
	if n := len(table.All()); n != 1 {
		t.Errorf("%d controllers are there, not 1", n)
	}
}

// What cannot be found again after the process is not let in.
func TestFullDisk(t *testing.T) {
	must.NotLeak(t)
	var (
		k    kernel
		disk shelf
	)
	table := disk.table(t)
	c := create(t, table, "pad", &k)
	disk.full = true
	_, err := c.Attach(t.Context(), 0, Plug{Device: newScanner(t, usb.SpeedFull)})
	wantErrno(t, err, syscall.EIO)
	if !strings.Contains(err.Error(), "written down") || len(k.held) != 0 {
		t.Errorf("error %v, held are %v", err, k.held)
	}
	wantStatus(t, c, idle(DefaultHubPorts))

	_, err = table.Create(Config{Name: "two", Driver: &k}, 1)
	wantErrno(t, err, syscall.EIO)
	disk.full = false
	if two := create(t, table, "two", &k); two.Index() != 1 {
		t.Errorf("index %d after a failure, not 1", two.Index())
	}
}

// The device is on disk before it is let in.
func TestSavedBeforeReady(t *testing.T) {
	var (
		k    kernel
		disk shelf
	)
	table := disk.table(t)
	c := create(t, table, "pad", &k)
	_, err := c.Attach(t.Context(), 0, Plug{Device: newScanner(t, usb.SpeedFull), Ready: func(Attachment) error {
		if len(disk.kept[0]) != 1 {
			t.Errorf("on disk is %v when the device is let in", disk.kept)
		}
		return errors.New("no")
	}})
	wantErrno(t, err, syscall.EACCES)
	if len(disk.kept[0]) != 0 {
		t.Errorf("on disk is %v after a refusal", disk.kept)
	}
}

func TestPolicy(t *testing.T) {
	var table Table
	defer table.Close()
	made, err := table.Create(Config{Driver: &User{}, Policy: policy.Policy{Classes: policy.All, MaxDevices: 1}}, 1)
	must.OK(t, err)
	c := made[0]
	_, err = c.Attach(t.Context(), 0, Plug{Device: newScanner(t, usb.SpeedFull)})
	must.OK(t, err)
	_, err = c.Attach(t.Context(), 1, Plug{Device: newScanner(t, usb.SpeedFull)})
	wantErrno(t, err, syscall.EACCES)
	if _, ok := errors.AsType[*policy.Refusal](err); !ok {
		t.Errorf("error %v is no refusal of the policy", err)
	}
	if used := slices.DeleteFunc(c.Ports(), func(p PortInfo) bool { return p.Free() }); len(used) != 1 {
		t.Errorf("%d ports are in use", len(used))
	}
}

// What Ready did is undone once: when the device is gone, also one that was
// refused after that, but not when it is left to a later process.
func TestReadyIsUndone(t *testing.T) {
	must.NotLeak(t)
	var (
		k    kernel
		disk shelf
		undo = make(chan int, 8)
	)
	begin := func() *Table {
		table := disk.table(t)
		table.Ready = func(_ *Controller, port int, _ Attachment) (func(), error) {
			return func() { undo <- port }, nil
		}
		return table
	}
	first := begin()
	c := create(t, first, "pad", &k)
	_, err := c.Attach(t.Context(), 3, Plug{Device: newScanner(t, usb.SpeedFull), Ready: func(Attachment) error { return errors.New("no") }})
	wantErrno(t, err, syscall.EACCES)
	if port := <-undo; port != 3 {
		t.Errorf("undone is port %d, not 3", port)
	}
	_, err = c.Attach(t.Context(), 2, Plug{Device: newScanner(t, usb.SpeedFull)})
	must.OK(t, err)
	first.Close()
	if len(undo) != 0 {
		t.Error("undone for a device that is left")
	}
	second := begin()
	c, err = second.Restore(0, Config{HubPorts: DefaultHubPorts, Driver: &k, Policy: policy.Open()})
	must.OK(t, err)
	if errs := c.RestorePorts(t.Context(), disk.kept[0], nil); errs != nil {
		t.Fatal(errs)
	}
	must.OK(t, second.Delete(second.Controller(0)))
	if port := <-undo; port != 2 || len(undo) != 0 {
		t.Errorf("undone is port %d, and %d more", port, len(undo))
	}
}

// Whoever is late with what a controller is does not bring it back.
func TestSaveOfADeletedController(t *testing.T) {
	var disk shelf
	table := disk.table(t)
	c := create(t, table, "alice", new(kernel))
	must.OK(t, table.Delete(c))
	must.Is(t, c.Save(), syscall.ENOENT)
	if len(disk.kept) > 0 {
		t.Errorf("kept is %v", disk.kept)
	}
}
