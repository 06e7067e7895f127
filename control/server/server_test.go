//go:build linux

package server_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/control/server"
	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/internal/usbiptest"
	"github.com/usbns/usbns/policy"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
)

// start serves an empty table in a directory of its own.
func start(t *testing.T) (*control.Client, *controller.Table) {
	t.Helper()
	return startIn(t, must.TempDir(t))
}

func startIn(t *testing.T, dir string) (*control.Client, *controller.Table) {
	t.Helper()
	table := new(controller.Table)
	t.Cleanup(table.Close)
	serve(t, newServer(table), dir)
	return control.NewClient(dir), table
}

func newServer(table *controller.Table) *server.Server {
	drivers := map[string]server.Driver{"user": {Driver: &controller.User{}}}
	return &server.Server{Table: table, Drivers: drivers, Log: slog.New(slog.DiscardHandler)}
}

// serve serves in a directory until stop, or until the test ends.
func serve(t *testing.T, s *server.Server, dir string) (stop func()) {
	t.Helper()
	api, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(dir, control.Socket)})
	if err != nil {
		t.Fatal(err)
	}
	attach, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: filepath.Join(dir, control.AttachSocket)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, api, attach) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// export offers a scanner as 1-1 and returns a connection to it past IMPORT.
func export(t *testing.T) (*net.TCPConn, usbip.DeviceInfo) {
	t.Helper()
	scanner, err := emulate.NewScanner(emulate.Options{})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := usbip.Dial(t.Context(), usbiptest.Export(t, "127.0.0.1:0", scanner))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	info, err := usbip.RequestImport(t.Context(), conn, "1-1")
	if err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn), info
}

func TestCreateListDelete(t *testing.T) {
	c, _ := start(t)
	if _, err := c.Create(t.Context(), control.Create{Name: "alice", Driver: "user", UID: 1000, GID: 100}); err != nil {
		t.Fatal(err)
	}
	made, err := c.Create(t.Context(), control.Create{Count: 3, Driver: "user", HubPorts: 1})
	if err != nil || len(made) != 3 || made[2].Index != 3 {
		t.Fatalf("made %+v, %v", made, err)
	}
	alice, err := c.Controller(t.Context(), "alice")
	want := control.Controller{Index: 0, Name: "alice", Driver: "user", HubPorts: controller.DefaultHubPorts, UID: 1000, GID: 100, Policy: policy.Open()}
	if diff := cmp.Diff(want, alice); err != nil || diff != "" {
		t.Errorf("alice: %v\n%s", err, diff)
	}
	if err := c.Delete(t.Context(), "2"); err != nil {
		t.Error(err)
	}
	list, err := c.Controllers(t.Context())
	if err != nil || len(list) != 3 || list[2].Index != 3 {
		t.Errorf("left are %+v, %v", list, err)
	}
}

func TestAttachPortsDetach(t *testing.T) {
	c, table := start(t)
	if _, err := c.Create(t.Context(), control.Create{Name: "alice", Driver: "user"}); err != nil {
		t.Fatal(err)
	}
	conn, info := export(t)
	remote := control.Remote{Host: "desk", Port: "3240", BusID: "1-1"}
	port, err := c.Attach(t.Context(), conn, control.Attach{
		Controller: "alice", Port: control.AnyPort, DevID: info.DevID(), Speed: int(info.Speed), Remote: remote,
	})
	if err != nil || port != 0 {
		t.Fatalf("port %d, %v", port, err)
	}
	ports, err := c.Ports(t.Context(), "0")
	if err != nil || len(ports) != 2*controller.DefaultHubPorts {
		t.Fatalf("%d ports, %v", len(ports), err)
	}
	if p := ports[0]; p.Status != 6 || p.Vendor != 0x1209 || p.Remote != remote || p.BusID != "1-1" {
		t.Errorf("port 0 is %+v", p)
	}
	if table.Controller(0).Device(0) == nil {
		t.Error("there is no device behind port 0")
	}
	if err := c.Detach(t.Context(), "alice", 0); err != nil {
		t.Error(err)
	}
	if err := c.Detach(t.Context(), "alice", 1); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("detach of a free port: %v, want %v", err, syscall.EINVAL)
	}
}

func TestRefusals(t *testing.T) {
	c, _ := start(t)
	if _, err := c.Create(t.Context(), control.Create{Driver: "user", HubPorts: 1}); err != nil {
		t.Fatal(err)
	}
	conn, info := export(t)
	plain := control.Attach{Controller: "0", DevID: info.DevID(), Speed: int(info.Speed)}
	with := func(change func(*control.Attach)) error {
		a := plain
		change(&a)
		_, err := c.Attach(t.Context(), conn, a)
		return err
	}
	_, unknownDriver := c.Create(t.Context(), control.Create{Driver: "toaster"})
	_, exclusive := c.Create(t.Context(), control.Create{Driver: "user", Exclusive: true})
	_, negative := c.Create(t.Context(), control.Create{Driver: "user", Count: -3})
	_, badPorts := c.Create(t.Context(), control.Create{Driver: "user", HubPorts: 99})
	for name, test := range map[string]struct {
		err   error
		errno syscall.Errno
		text  string
	}{
		"unknown driver":               {unknownDriver, syscall.EINVAL, "there is: user"},
		"exclusive in user space":      {exclusive, syscall.EINVAL, "its driver is kernel, not user"},
		"a negative number":            {negative, syscall.EINVAL, "-3"},
		"too many ports":               {badPorts, syscall.EINVAL, "99"},
		"unknown controller":           {c.Delete(t.Context(), "bob"), syscall.ENOENT, "usbns controller list"},
		"attach to unknown controller": {with(func(a *control.Attach) { a.Controller = "7" }), syscall.ENOENT, `"7"`},
		"attach to unknown port":       {with(func(a *control.Attach) { a.Port = 2 }), syscall.EINVAL, "port 2"},
		"attach without speed":         {with(func(a *control.Attach) { a.Speed = 0 }), syscall.EINVAL, "speed"},
		"attach with a speed too many": {with(func(a *control.Attach) { a.Speed = 300 }), syscall.EINVAL, "300"},
	} {
		t.Run(name, func(t *testing.T) {
			if !errors.Is(test.err, test.errno) || !strings.Contains(test.err.Error(), test.text) {
				t.Errorf("error %v, want %v and %q", test.err, test.errno, test.text)
			}
		})
	}
}

func TestNoFreePort(t *testing.T) {
	c, _ := start(t)
	if _, err := c.Create(t.Context(), control.Create{Driver: "user", HubPorts: 1}); err != nil {
		t.Fatal(err)
	}
	var err error
	for range 2 {
		conn, info := export(t)
		_, err = c.Attach(t.Context(), conn, control.Attach{Controller: "0", Port: control.AnyPort, DevID: info.DevID(), Speed: int(info.Speed)})
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("attach beyond the last port: %v, want %v", err, syscall.ENOSPC)
	}
}

func TestClientThatLeavesEndsItsAttach(t *testing.T) {
	c, table := start(t)
	if _, err := c.Create(t.Context(), control.Create{Driver: "user"}); err != nil {
		t.Fatal(err)
	}
	conn, silent := must.Connect(t)
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := c.Attach(ctx, conn, control.Attach{Controller: "0", Speed: 3})
		left <- err
	}()
	if _, err := silent.Read(make([]byte, 48)); err != nil { // it is being enumerated
		t.Fatal(err)
	}
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("attach ends with %v, want %v", err, context.Canceled)
	}
	for !table.Controller(0).Ports()[0].Free() {
		if t.Context().Err() != nil {
			t.Fatal("the port stays taken")
		}
	}
}

func TestNoDaemon(t *testing.T) {
	_, err := control.NewClient(t.TempDir()).Controllers(t.Context())
	if dial, ok := errors.AsType[*control.DialError](err); !ok || !strings.Contains(dial.Error(), "usbns daemon") {
		t.Errorf("error %v, want what to do", err)
	}
}

// What a policy may say, and what it may not.
func TestCreateWithPolicy(t *testing.T) {
	c, table := start(t)
	made, err := c.Create(t.Context(), control.Create{
		Driver: "user", Allow: []string{"smartcard", "1234:abcd:S-1"}, Deny: []string{"all"}, MaxDevices: 2, MaxSpeed: "high",
	})
	if err != nil {
		t.Fatal(err)
	}
	want, err := policy.Open().With([]string{"smartcard", "1234:abcd:S-1"}, []string{"all"})
	if err != nil {
		t.Fatal(err)
	}
	want.MaxDevices, want.MaxSpeed = 2, usb.SpeedHigh
	if diff := cmp.Diff(want, made[0].Policy); diff != "" {
		t.Errorf("made with another policy:\n%s", diff)
	}
	for name, r := range map[string]control.Create{
		"unknown class":  {Driver: "user", Allow: []string{"disks"}},
		"bad number":     {Driver: "user", Deny: []string{"12:34"}},
		"unknown speed":  {Driver: "user", MaxSpeed: "warp"},
		"negative count": {Driver: "user", MaxDevices: -1},
	} {
		if _, err := c.Create(t.Context(), r); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	if n := len(table.All()); n != 1 {
		t.Errorf("%d controllers, not 1", n)
	}
}

// given is a container that has every controller.
type given struct{ control.Container }

func (given) Enter(*controller.Controller, control.Container) error { return nil }
func (given) Leave(*controller.Controller, int) error               { return nil }

func (g given) Find(*controller.Controller) (control.Container, error) { return g.Container, nil }

func TestContainerOfAController(t *testing.T) {
	var table controller.Table
	defer table.Close()
	if _, err := table.Create(controller.Config{Driver: &controller.User{}}, 1); err != nil {
		t.Fatal(err)
	}
	want := control.Container{PID: 7, Root: "/", RootUID: 100000, Keeper: true}
	s := &server.Server{Table: &table, Containers: given{want}, Log: slog.New(slog.DiscardHandler)}
	reply := httptest.NewRecorder()
	s.Handler().ServeHTTP(reply, httptest.NewRequest("GET", "/v1/controllers/0/container", nil))
	var got control.Container
	if err := json.NewDecoder(reply.Body).Decode(&got); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}
