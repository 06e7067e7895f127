//go:build linux

package server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/policy"
	"github.com/usbns/usbns/usb"
)

// plug makes a controller with dev on its port 0.
func plug(t *testing.T, table *controller.Table, dev usb.Device) {
	t.Helper()
	made, err := table.Create(controller.Config{Driver: &controller.User{}, Policy: policy.Open()}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := made[0].Attach(t.Context(), 0, controller.Plug{Device: dev}); err != nil {
		t.Fatal(err)
	}
}

func newLoopback(t *testing.T) *emulate.Loopback {
	t.Helper()
	l, err := emulate.NewLoopback(emulate.Options{Speed: usb.SpeedFull})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func setup(s usb.Setup) control.Hex {
	b := s.Bytes()
	return b[:]
}

func vendorOut(request uint8, value, index, length uint16) control.Hex {
	return setup(usb.Setup{RequestType: usb.KindVendor, Request: request, Value: value, Index: index, Length: length})
}

func TestTransferOfEachType(t *testing.T) {
	c, table := start(t)
	plug(t, table, newLoopback(t))
	long := bytes.Repeat([]byte("usbns "), 100)
	for name, test := range map[string]struct{ out, in control.Transfer }{
		"bulk":      {control.Transfer{Endpoint: 0x01, Data: long}, control.Transfer{Endpoint: 0x81, Length: 1024}},
		"interrupt": {control.Transfer{Endpoint: 0x02, Data: long[:50]}, control.Transfer{Endpoint: 0x82}},
		"control": {
			control.Transfer{Setup: vendorOut(emulate.LoopbackScratch, 7, 0, 600), Data: long},
			control.Transfer{Setup: setup(usb.Setup{RequestType: usb.DirIn | usb.KindVendor, Request: emulate.LoopbackScratch, Value: 7, Length: 600})},
		},
	} {
		t.Run(name, func(t *testing.T) {
			done, err := c.Transfer(t.Context(), "0", 0, test.out)
			if err != nil || done.Actual != len(test.out.Data) || len(done.Data) != 0 {
				t.Errorf("out: %d bytes and %d back, %v", done.Actual, len(done.Data), err)
			}
			done, err = c.Transfer(t.Context(), "0", 0, test.in)
			if err != nil || !bytes.Equal(done.Data, test.out.Data) || done.Actual != len(done.Data) {
				t.Errorf("in: %q, %v", done.Data, err)
			}
		})
	}
}

func TestTransferToARemoteDevice(t *testing.T) {
	c, _ := start(t)
	if _, err := c.Create(t.Context(), control.Create{Driver: "user"}); err != nil {
		t.Fatal(err)
	}
	conn, info := export(t)
	if _, err := c.Attach(t.Context(), conn, control.Attach{Controller: "0", DevID: info.DevID(), Speed: int(info.Speed)}); err != nil {
		t.Fatal(err)
	}
	done, err := c.Transfer(t.Context(), "0", 0, control.Transfer{Setup: setup(usb.GetDescriptor(usb.DescDevice, 0, 0, 18))})
	if err != nil || done.Actual != 18 || done.Data.String()[16:20] != "0912" {
		t.Errorf("device descriptor %v, %v", done.Data, err)
	}
}

func TestTransferRefusals(t *testing.T) {
	c, table := start(t)
	plug(t, table, newLoopback(t))
	in := setup(usb.GetDescriptor(usb.DescDevice, 0, 0, 18))
	for name, test := range map[string]struct {
		port  int
		t     control.Transfer
		errno syscall.Errno
		text  string
	}{
		"no such port":            {99, control.Transfer{}, syscall.EINVAL, "0 to 15"},
		"free port":               {1, control.Transfer{}, syscall.ENODEV, "usbns port"},
		"no setup":                {0, control.Transfer{}, syscall.EINVAL, "8 bytes"},
		"long setup":              {0, control.Transfer{Setup: append(in, 0)}, syscall.EINVAL, "8 bytes"},
		"length beside a setup":   {0, control.Transfer{Setup: in, Length: 18}, syscall.EINVAL, "tells the length"},
		"data with a request IN":  {0, control.Transfer{Setup: in, Data: control.Hex{1}}, syscall.EINVAL, "takes none"},
		"other length OUT":        {0, control.Transfer{Setup: vendorOut(1, 0, 0, 2), Data: control.Hex{1}}, syscall.EINVAL, "2 bytes"},
		"setup for an endpoint":   {0, control.Transfer{Endpoint: 0x81, Setup: in}, syscall.EINVAL, "endpoint 0"},
		"unknown endpoint":        {0, control.Transfer{Endpoint: 0x85}, syscall.EINVAL, "0x81 (bulk)"},
		"endpoint 0 with a bit":   {0, control.Transfer{Endpoint: 0x80}, syscall.EINVAL, "0 (control)"},
		"no address":              {0, control.Transfer{Endpoint: 0x91}, syscall.EINVAL, "0x91"},
		"data to an IN endpoint":  {0, control.Transfer{Endpoint: 0x81, Data: control.Hex{1}}, syscall.EINVAL, "takes none"},
		"length of an OUT":        {0, control.Transfer{Endpoint: 0x01, Length: 1}, syscall.EINVAL, "its own"},
		"negative length":         {0, control.Transfer{Endpoint: 0x81, Length: -1}, syscall.EINVAL, "262144"},
		"too long IN":             {0, control.Transfer{Endpoint: 0x81, Length: control.MaxTransfer + 1}, syscall.EINVAL, "262144"},
		"too long OUT":            {0, control.Transfer{Endpoint: 0x01, Data: make(control.Hex, control.MaxTransfer+1)}, syscall.EINVAL, "262144"},
		"too long for a message":  {0, control.Transfer{Endpoint: 0x01, Data: make(control.Hex, control.MaxMessage)}, syscall.EINVAL, "too large"},
		"negative time-out":       {0, control.Transfer{Endpoint: 0x81, Timeout: -1}, syscall.EINVAL, "-1 ms"},
		"too long a time-out":     {0, control.Transfer{Endpoint: 0x81, Timeout: 1 << 60}, syscall.EINVAL, "10m0s"},
		"nothing in time":         {0, control.Transfer{Endpoint: 0x81, Timeout: 1}, syscall.ETIMEDOUT, "--timeout"},
		"request nobody supports": {0, control.Transfer{Setup: vendorOut(0x77, 0, 0, 0)}, syscall.EPIPE, "not support"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.Transfer(t.Context(), "0", test.port, test.t)
			errno, _ := errors.AsType[syscall.Errno](err)
			if err == nil || errno != test.errno || !strings.Contains(err.Error(), test.text) {
				t.Errorf("error %v (%v), want %v and %q", err, errno, test.errno, test.text)
			}
		})
	}
}

// A halted endpoint's error has the command that makes it work again.
func TestTransferTellsHowToClearAHalt(t *testing.T) {
	c, table := start(t)
	plug(t, table, newLoopback(t))
	if _, err := c.Transfer(t.Context(), "0", 0, control.Transfer{Setup: vendorOut(emulate.LoopbackHalt, 0, 0x81, 0)}); err != nil {
		t.Fatal(err)
	}
	_, err := c.Transfer(t.Context(), "0", 0, control.Transfer{Endpoint: 0x81})
	if !errors.Is(err, syscall.EPIPE) {
		t.Fatal(err)
	}
	_, told, _ := strings.Cut(err.Error(), "--setup ")
	var packet control.Hex
	if err := packet.UnmarshalText([]byte(strings.TrimSuffix(told, ")"))); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Transfer(t.Context(), "0", 0, control.Transfer{Setup: packet}); err != nil {
		t.Error(err)
	}
	if _, err := c.Transfer(t.Context(), "0", 0, control.Transfer{Endpoint: 0x01, Data: control.Hex{1}}); err != nil {
		t.Error(err)
	}
	if done, err := c.Transfer(t.Context(), "0", 0, control.Transfer{Endpoint: 0x81}); err != nil || done.Actual != 1 {
		t.Errorf("after the halt: %v, %v", done.Data, err)
	}
}

// A silent device counts the transfers that wait in it.
type silent struct {
	*emulate.Loopback
	submitted, completed chan struct{}
}

func newSilent(t *testing.T) *silent {
	return &silent{newLoopback(t), make(chan struct{}, 1000), make(chan struct{}, 1000)}
}

func (s *silent) Submit(u *usb.URB) error {
	complete := u.Complete
	u.Complete = func(u *usb.URB) {
		s.completed <- struct{}{}
		complete(u)
	}
	err := s.Loopback.Submit(u)
	s.submitted <- struct{}{}
	return err
}

func await(t *testing.T, what <-chan struct{}, n int) {
	t.Helper()
	for i := range n {
		select {
		case <-what:
		case <-time.After(30 * time.Second):
			t.Fatalf("%d of %d after 30 s", i, n)
		}
	}
}

func TestTransferEndsWithItsClient(t *testing.T) {
	c, table := start(t)
	dev := newSilent(t)
	plug(t, table, dev)
	await(t, dev.completed, 1) // of the driver
	await(t, dev.submitted, 1)
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := c.Transfer(ctx, "0", 0, control.Transfer{Endpoint: 0x81, Timeout: 600_000})
		left <- err
	}()
	await(t, dev.submitted, 1)
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("the client's error is %v", err)
	}
	await(t, dev.completed, 1)
}

func TestTransferEndsWithItsDevice(t *testing.T) {
	c, table := start(t)
	dev := newSilent(t)
	plug(t, table, dev)
	await(t, dev.submitted, 1)
	left := make(chan error, 1)
	go func() {
		_, err := c.Transfer(t.Context(), "0", 0, control.Transfer{Endpoint: 0x81, Timeout: 600_000})
		left <- err
	}()
	await(t, dev.submitted, 1)
	if err := c.Detach(t.Context(), "0", 0); err != nil {
		t.Error(err)
	}
	if err := <-left; !errors.Is(err, syscall.ESHUTDOWN) {
		t.Errorf("the transfer ends with %v, want %v", err, syscall.ESHUTDOWN)
	}
}

func TestTransfersAtOnceAreBounded(t *testing.T) {
	c, table := start(t)
	dev := newSilent(t)
	plug(t, table, dev)
	await(t, dev.submitted, 1)
	const most = 64
	ctx, leave := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	for range most {
		waiting.Go(func() {
			if _, err := c.Transfer(ctx, "0", 0, control.Transfer{Endpoint: 0x81, Timeout: 600_000}); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	await(t, dev.submitted, most)
	if _, err := c.Transfer(t.Context(), "0", 0, control.Transfer{Endpoint: 0x81}); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("transfer %d: %v, want %v", most+1, err, syscall.EAGAIN)
	}
	if _, err := c.Ports(t.Context(), "0"); err != nil {
		t.Errorf("other requests meanwhile: %v", err)
	}
	leave()
	waiting.Wait()
}

// Net/http hears of a client's end only when it has read all of the request, and
// what reads JSON stops behind it.
func TestTransferEndsWithTheServer(t *testing.T) {
	table := new(controller.Table)
	dir := must.TempDir(t)
	stop := serve(t, newServer(table), dir)
	t.Cleanup(table.Close) // before stop, which would wait if this fails
	dev := newSilent(t)
	plug(t, table, dev)
	await(t, dev.submitted, 1)
	conn, err := net.Dial("unix", filepath.Join(dir, control.Socket))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	body := `{"endpoint": 129, "timeout_ms": 600000}` + strings.Repeat(" ", 100_000)
	_, err = fmt.Fprintf(conn, "POST /v1/controllers/0/ports/0/transfer HTTP/1.1\r\nHost: usbns\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	if err != nil {
		t.Fatal(err)
	}
	await(t, dev.submitted, 1)
	ended := make(chan struct{}, 1)
	go func() {
		stop()
		ended <- struct{}{}
	}()
	await(t, ended, 1)
}
