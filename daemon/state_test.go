//go:build linux

package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usbns/usbns/control/server"
	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/controller/kernel"
	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/policy"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/vhci"
	"github.com/usbns/usbns/vhci/vhcitest"
)

// A keeper is a driver whose attachment, of whatever it was saved with, is always
// found again.
type keeper struct{ device usb.Device }

func (k *keeper) Attach(_ context.Context, p controller.Plug) (controller.Attachment, error) {
	k.device = p.Device
	a := kept{k, make(chan struct{})}
	return a, p.Ready(a)
}

func (k *keeper) Restore(_ context.Context, p controller.Plug, saved []byte) (controller.Attachment, error) {
	if k.device == nil || string(saved) != "kept" {
		return nil, controller.ErrNotRestored
	}
	a := kept{k, make(chan struct{})}
	if err := p.Ready(a); err != nil {
		a.Detach()
		return nil, err
	}
	return a, nil
}

type kept struct {
	*keeper
	done chan struct{}
}

func (k kept) Descriptors() *usb.Descriptors { return k.device.Descriptors() }
func (k kept) Device() usb.Device            { return nil }
func (k kept) Path() string                  { return "" }
func (k kept) Saved() []byte                 { return []byte("kept") }
func (k kept) Detach()                       { k.device = nil }
func (k kept) Leave()                        {}
func (k kept) Done() <-chan struct{}         { return k.done }
func (k kept) Err() error                    { return nil }

// begin is what a daemon does before it serves.
func begin(t *testing.T, dir string, k *keeper) (*server.Server, error) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	s := &server.Server{
		Drivers: map[string]server.Driver{"user": {Driver: &controller.User{}}, "kernel": {Driver: k, Kernel: true}},
		Log:     log,
	}
	disk := &state{dir: dir, driver: s.DriverName}
	s.Table = newTable(disk, log, log)
	return s, restore(t.Context(), s, disk, nil, log)
}

func TestStateOutlivesTheDaemon(t *testing.T) {
	dir := t.TempDir()
	scanner, err := emulate.NewScanner(emulate.Options{})
	must.OK(t, err)
	defer scanner.Close()
	k := new(keeper)
	first, err := begin(t, dir, k)
	must.OK(t, err)
	rules, err := policy.Open().With([]string{"1234:abcd:S 1"}, []string{"network"})
	must.OK(t, err)
	rules.MaxDevices, rules.MaxSpeed = 3, usb.SpeedHigh
	user := first.Drivers["user"].Driver
	for _, cfg := range []controller.Config{
		{Driver: user},
		{Name: "alice", Driver: k, HubPorts: 2, UID: 1000, GID: 100, Policy: rules},
		{Name: "bob", Driver: user},
	} {
		_, err := first.Table.Create(cfg, 1)
		must.OK(t, err)
	}
	must.OK(t, first.Table.Delete(first.Table.Controller(0)))
	alice := first.Table.ByName("alice")
	from := vhci.Record{Host: "shop", Port: "3240", BusID: "1-4"}
	_, err = alice.Attach(t.Context(), 1, controller.Plug{Device: scanner, DevID: 7, From: from})
	must.OK(t, err)

	// The first daemon is killed: it does not get to say anything.
	second, err := begin(t, dir, k)
	must.OK(t, err)
	if n := len(second.Table.All()); n != 2 || second.Table.Controller(0) != nil || second.Table.ByName("bob").Index() != 2 {
		t.Errorf("%d controllers, bob is %v", n, second.Table.ByName("bob"))
	}
	again := second.Table.ByName("alice")
	if diff := cmp.Diff(alice.Config(), again.Config(), cmp.Comparer(func(a, b controller.Driver) bool { return a == b })); diff != "" {
		t.Errorf("alice is another:\n%s", diff)
	}
	want, got := alice.Ports(), again.Ports()
	want[1].SockFD = got[1].SockFD
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ports are others:\n%s", diff)
	}

	// The device goes while no daemon is there.
	k.device = nil
	third, err := begin(t, dir, k)
	must.OK(t, err)
	if p := third.Table.ByName("alice").Ports()[1]; !p.Free() {
		t.Errorf("a port whose device is gone is %v", p.Status)
	}
	b, err := os.ReadFile(filepath.Join(dir, "1.json"))
	must.OK(t, err)
	if strings.Contains(string(b), "ports\":[") {
		t.Errorf("on disk is still %s", b)
	}
	must.OK(t, third.Table.Delete(third.Table.Controller(1)))
	must.OK(t, third.Table.Delete(third.Table.Controller(2)))
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left on disk: %v, %v", left, err)
	}
}

// The devices of a container that is not there any more are found and let go of:
// a later owner of the controller must not have them.
func TestStateOfAContainerThatIsGone(t *testing.T) {
	for _, temporary := range []bool{false, true} {
		dir := t.TempDir()
		scanner, err := emulate.NewScanner(emulate.Options{})
		must.OK(t, err)
		defer scanner.Close()
		k := new(keeper)
		first, err := begin(t, dir, k)
		must.OK(t, err)
		made, err := first.Table.Create(controller.Config{Driver: k, Policy: policy.Open()}, 1)
		must.OK(t, err)
		_, err = made[0].Attach(t.Context(), 0, controller.Plug{Device: scanner, DevID: 7})
		must.OK(t, err)
		file := filepath.Join(dir, "0.json")
		b, err := os.ReadFile(file)
		must.OK(t, err)
		in := fmt.Appendf(nil, `{"container":{"pid":1,"root":"/","temporary":%v},`, temporary)
		must.OK(t, os.WriteFile(file, bytes.Replace(b, []byte("{"), in, 1), 0o600))

		second, err := begin(t, dir, k)
		must.OK(t, err)
		if k.device != nil {
			t.Errorf("temporary %v: the device is still there", temporary)
		}
		b, err = os.ReadFile(file)
		if c := second.Table.Controller(0); temporary {
			if c != nil || !errors.Is(err, os.ErrNotExist) {
				t.Errorf("there is still %v, and on disk %s, %v", c, b, err)
			}
		} else if p := c.Ports()[0]; !p.Free() || err != nil || bytes.Contains(b, []byte("ports\":[")) {
			t.Errorf("the port is %v, and on disk is still %s, %v", p.Status, b, err)
		}
	}
}

// What an exclusive controller has is the same in the next daemon, and free when
// it is deleted.
func TestExclusiveOutlivesTheDaemon(t *testing.T) {
	machine := vhcitest.New(t, 2, 3)
	dir := t.TempDir()
	daemon := func() (*server.Server, *controller.Config) {
		k := kernel.New(kernel.Options{Sysfs: machine.Sysfs()})
		t.Cleanup(func() { must.OK(t, k.Close()) })
		s := &server.Server{Drivers: map[string]server.Driver{"kernel": {Driver: k, Kernel: true, Exclusive: k}}}
		disk := &state{dir: dir, driver: s.DriverName}
		log := slog.New(slog.DiscardHandler)
		s.Table = newTable(disk, log, log)
		must.OK(t, restore(t.Context(), s, disk, nil, log))
		return s, &controller.Config{Driver: k, Exclusive: k}
	}
	exclusive := func(s *server.Server, cfg *controller.Config, name string) (int, error) {
		cfg.Name = name
		made, err := s.Table.Create(*cfg, 1)
		if err != nil {
			return -1, err
		}
		return made[0].Config().Kernel, nil
	}
	first, cfg := daemon()
	if k, err := exclusive(first, cfg, "alice"); k != 1 || err != nil {
		t.Fatalf("alice has %d, %v", k, err)
	}
	second, cfg := daemon()
	if alice := second.Table.ByName("alice").Config(); alice.Exclusive == nil || alice.Kernel != 1 || alice.HubPorts != 3 {
		t.Errorf("alice has %d with %d ports", alice.Kernel, alice.HubPorts)
	}
	if k, err := exclusive(second, cfg, "bob"); k != 0 || err != nil {
		t.Errorf("bob has %d, %v", k, err)
	}
	if k, err := exclusive(second, cfg, "carol"); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("carol has %d, %v", k, err)
	}
	must.OK(t, second.Table.Delete(second.Table.Controller(0)))
	third, cfg := daemon()
	if k, err := exclusive(third, cfg, "carol"); k != 1 || err != nil {
		t.Errorf("carol has %d, %v", k, err)
	}
}

func TestBadState(t *testing.T) {
	const good = `{"version":1,"index":3,"driver":"user","hub_ports":8,"uid":0,"gid":0,"policy":{"classes":"all"}}`
	for _, tt := range []struct{ name, file, text, want string }{
		{"good", "3.json", good, ""},
		{"empty", "3.json", "", "EOF"},
		{"cut", "3.json", good[:40], "unexpected EOF"},
		{"later version", "3.json", strings.Replace(good, `"version":1`, `"version":2`, 1), "version 2"},
		{"unknown field", "3.json", strings.Replace(good, `"uid"`, `"quota":1,"uid"`, 1), "quota"},
		{"unknown class", "3.json", strings.Replace(good, `"all"`, `"disks"`, 1), "disks"},
		{"unknown driver", "3.json", strings.Replace(good, `"user"`, `"magic"`, 1), `no driver "magic"`},
		{"of another controller", "4.json", good, "of controller 3"},
		{"exclusive of nothing", "3.json", strings.Replace(good, `"uid"`, `"exclusive":1,"uid"`, 1), "no exclusive controllers"},
		{"bad name", "3.json", strings.Replace(good, `"driver"`, `"name":"../x","driver"`, 1), "name"},
		{"no ports", "3.json", strings.Replace(good, `:8`, `:0`, 1), "ports"},
		{"huge", "3.json", good + strings.Repeat(" ", maxStateBytes), "longer"},
		{"begun and never ended", "3.json.new", "{", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			must.OK(t, os.WriteFile(filepath.Join(dir, tt.file), []byte(tt.text), 0o600))
			_, err := begin(t, dir, new(keeper))
			if (err == nil) != (tt.want == "") || err != nil && (!strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), tt.file)) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// A controller is deleted that a container has, and its index is another's when
// the container ends.
func TestStateIsNotOfADeletedController(t *testing.T) {
	dir := t.TempDir()
	s, err := begin(t, dir, new(keeper))
	must.OK(t, err)
	create := func(name string) *controller.Controller {
		t.Helper()
		made, err := s.Table.Create(controller.Config{Name: name, Driver: s.Drivers["user"].Driver}, 1)
		must.OK(t, err)
		return made[0]
	}
	alice := create("alice")
	m := &member{cancel: func() {}}
	var log bytes.Buffer
	k := &containers{server: s, log: slog.New(slog.NewTextHandler(&log, nil)), members: map[*controller.Controller]*member{alice: m}}
	must.OK(t, s.Table.Delete(alice))
	create("bob")
	k.end(alice, m)
	again, err := begin(t, dir, new(keeper))
	must.OK(t, err)
	if bob := again.Table.ByName("bob"); bob == nil || again.Table.ByName("alice") != nil || log.Len() > 0 {
		t.Errorf("bob is %v, alice %v, and the log says %q", bob, again.Table.ByName("alice"), &log)
	}
}
