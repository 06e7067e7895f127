//go:build linux

package server_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/policy"
	"github.com/usbns/usbns/usb"
)

// startOnly serves bob to his container. Alice, who has a device, is on the same
// host.
func startOnly(t *testing.T) (bob *control.Client, alice *controller.Controller, dir string) {
	t.Helper()
	dir = must.TempDir(t)
	table := new(controller.Table)
	t.Cleanup(table.Close)
	s := newServer(table)
	var both [2]*controller.Controller
	for i, name := range []string{"alice", "bob"} {
		made, err := table.Create(controller.Config{
			Name: name, HubPorts: 1, Driver: s.Drivers["user"].Driver, UID: 1000, GID: 100, Policy: policy.Open(),
		}, 1)
		if err != nil {
			t.Fatal(err)
		}
		both[i] = made[0]
	}
	dev, err := emulate.NewLoopback(emulate.Options{Speed: usb.SpeedFull})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := both[0].Attach(t.Context(), 0, controller.Plug{Device: dev}); err != nil {
		t.Fatal(err)
	}
	serve(t, s.Only(both[1]), dir)
	return control.NewClient(dir), both[0], dir
}

func TestOnlyServesItsController(t *testing.T) {
	bob, alice, _ := startOnly(t)
	list, err := bob.Controllers(t.Context())
	want := []control.Controller{{Driver: "user", HubPorts: 1, UID: 1000, GID: 100, Policy: policy.Open()}}
	if diff := cmp.Diff(want, list); err != nil || diff != "" {
		t.Errorf("controllers: %v\n%s", err, diff)
	}
	conn, info := export(t)
	request := control.Attach{
		Controller: "0", Port: control.AnyPort, DevID: info.DevID(), Speed: int(info.Speed),
		Remote: control.Remote{Host: "desk", Port: "3240", BusID: "1-1"},
	}
	if port, err := bob.Attach(t.Context(), conn, request); err != nil || port != 0 {
		t.Fatalf("attach: port %d, %v", port, err)
	}
	ports, err := bob.Ports(t.Context(), "0")
	if err != nil || len(ports) != 2 || ports[0].ProductName != "usbns bar-code scanner" || ports[0].Remote.Host != "desk" {
		t.Errorf("ports %+v, %v", ports, err)
	}
	device, err := bob.Transfer(t.Context(), "0", 0, control.Transfer{Setup: control.Hex{0x80, 6, 0, 1, 0, 0, 18, 0}})
	if err != nil || device.Actual != 18 {
		t.Errorf("transfer: %+v, %v", device, err)
	}
	if err := bob.Detach(t.Context(), "0", 0); err != nil {
		t.Error(err)
	}
	if alice.Device(0) == nil {
		t.Error("the neighbour's device is gone")
	}
}

// Whatever is tried, the answer tells nothing but that it is refused, and the
// same of what is there and what is not.
func TestOnlyRefuses(t *testing.T) {
	bob, alice, dir := startOnly(t)
	conn, info := export(t)
	attach := func(change func(*control.Attach)) error {
		a := control.Attach{Controller: "0", DevID: info.DevID(), Speed: int(info.Speed)}
		change(&a)
		_, err := bob.Attach(t.Context(), conn, a)
		return err
	}
	_, create := bob.Create(t.Context(), control.Create{Driver: "user"})
	_, container := bob.Container(t.Context(), "0")
	tries := map[string]struct {
		err   error
		errno syscall.Errno
		text  string
	}{
		"create":                {create, syscall.EPERM, "on the host"},
		"delete":                {bob.Delete(t.Context(), "0"), syscall.EPERM, "on the host"},
		"enter":                 {bob.Enter(t.Context(), "0", control.Container{PID: os.Getpid()}), syscall.EPERM, "on the host"},
		"container":             {container, syscall.EPERM, "on the host"},
		"leave":                 {bob.Leave(t.Context(), "0", os.Getpid()), syscall.EPERM, "on the host"},
		"detach a free port":    {bob.Detach(t.Context(), "0", 1), syscall.EINVAL, "controller 0 port 1: port is free"},
		"detach an unknown one": {bob.Detach(t.Context(), "0", 2), syscall.EINVAL, "controller 0 port 2: there is no such port"},
		"attach to no port":     {attach(func(a *control.Attach) { a.Port = 2 }), syscall.EINVAL, "controller 0 port 2: there is no such port"},
		"attach without speed":  {attach(func(a *control.Attach) { a.Speed = 0 }), syscall.EINVAL, "controller 0 port 0: device of"},
		"attach a wrong device": {attach(func(a *control.Attach) { a.Speed = int(usb.SpeedSuper); a.Remote.BusID = "1-1\x1b[2J" }), syscall.EINVAL, "cannot be shown"},
		"attach from nowhere":   {attach(func(a *control.Attach) { a.Remote.Host = "desk" }), syscall.EINVAL, "cannot be shown: the port is empty"},
	}
	const noOther = "no other can be named"
	for _, ref := range []string{"1", "2", "65536", "alice", "bob", "nobody", "00", "-0", "0x0", " 0", "0/../1"} {
		_, get := bob.Controller(t.Context(), ref)
		_, ports := bob.Ports(t.Context(), ref)
		_, transfer := bob.Transfer(t.Context(), ref, 0, control.Transfer{})
		for what, err := range map[string]error{
			"get": get, "ports": ports, "transfer": transfer, "detach": bob.Detach(t.Context(), ref, 0),
			"attach": attach(func(a *control.Attach) { a.Controller = ref }),
		} {
			test := tries["get"]
			test.err, test.errno, test.text = err, syscall.ENOENT, noOther
			tries[what+" "+ref] = test
		}
	}
	for name, test := range tries {
		if !errors.Is(test.err, test.errno) || !strings.Contains(test.err.Error(), test.text) {
			t.Errorf("%s: %v, want %v and %q", name, test.err, test.errno, test.text)
			continue
		}
		for _, secret := range []string{"alice", "bob", "vhci_hcd", dir} {
			if strings.Contains(test.err.Error(), secret) {
				t.Errorf("%s: %v tells %s", name, test.err, secret)
			}
		}
	}
	if alice.Device(0) == nil {
		t.Error("the neighbour's device is gone")
	}
}

// Errors of a driver, which name what is the host's, become numbers.
func TestOnlyTellsNoPaths(t *testing.T) {
	table := new(controller.Table)
	t.Cleanup(table.Close)
	secret := &os.PathError{Op: "open", Path: "/sys/devices/platform/vhci_hcd.7", Err: syscall.EMFILE}
	for name, test := range map[string]struct {
		failure error
		want    string
	}{
		"a path":    {secret, "attach controller 0 port 0: too many open files"},
		"a refusal": {errors.Join(controller.ErrRefused, secret, &policy.Refusal{Vendor: 1, Product: 2, Reason: "is a hub"}), "attach controller 0 port 0: device 0001:0002 is a hub"},
	} {
		made, err := table.Create(controller.Config{Driver: failing{test.failure}}, 1)
		if err != nil {
			t.Fatal(err)
		}
		dir := must.TempDir(t)
		serve(t, newServer(table).Only(made[0]), dir)
		conn, info := export(t)
		_, err = control.NewClient(dir).Attach(t.Context(), conn, control.Attach{Controller: "0", DevID: info.DevID(), Speed: int(info.Speed)})
		if err == nil || err.Error() != test.want {
			t.Errorf("%s: %v, want %s", name, err, test.want)
		}
	}
}

type failing struct{ err error }

func (f failing) Attach(context.Context, controller.Plug) (controller.Attachment, error) {
	return nil, f.err
}

func (f failing) Restore(context.Context, controller.Plug, []byte) (controller.Attachment, error) {
	return nil, f.err
}

// A container cannot use up the daemon's descriptors: it has more requests than
// it may, of which none comes to an end.
func TestOnlyBoundsConnections(t *testing.T) {
	bob, _, _ := startOnly(t)
	conn, info := export(t)
	if _, err := bob.Attach(t.Context(), conn, control.Attach{Controller: "0", DevID: info.DevID(), Speed: int(info.Speed)}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	defer waiting.Wait()
	defer cancel()
	for range 32 {
		waiting.Go(func() {
			for ctx.Err() == nil { // refused, it tries again
				_, _ = bob.Transfer(ctx, "0", 0, control.Transfer{Endpoint: 0x81, Timeout: control.MaxTransferTimeout.Milliseconds()})
			}
		})
	}
	served := func() bool {
		_, err := bob.Controllers(t.Context())
		return err == nil
	}
	must.Become(t, "there is no room for one more", func() bool { return !served() })
	cancel()
	must.Become(t, "there is room again", served)
}
