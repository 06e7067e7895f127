package controller

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/internal/usbiptest"
	"github.com/usbns/usbns/policy"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
	"github.com/usbns/usbns/vhci"
)

const testDevID = 0x10002

func wantErrno(t testing.TB, err error, want syscall.Errno) {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("error %v is no *Error", err)
	}
	if errno, _ := errors.AsType[syscall.Errno](err); errno != want || e.Errno != want {
		t.Fatalf("error %q is %v, want %v", err, errno, want)
	}
}

// newController returns the only controller of a table that tells its events.
func newController(t testing.TB, d Driver) (*Controller, <-chan Event) {
	t.Helper()
	events := make(chan Event, 100)
	table := &Table{OnEvent: func(e Event) { events <- e }}
	t.Cleanup(table.Close)
	made, err := table.Create(Config{Name: "pad", HubPorts: 2, Driver: d, Policy: policy.Open()}, 1)
	must.OK(t, err)
	return made[0], events
}

func wantEvent(t testing.TB, events <-chan Event, kind EventKind, port int) Event {
	t.Helper()
	select {
	case e := <-events:
		if e.Kind != kind || e.Port.Number != port {
			t.Fatalf("event %d of port %d, want %d of port %d", e.Kind, e.Port.Number, kind, port)
		}
		return e
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
	panic("unreachable")
}

func newScanner(t testing.TB, speed usb.Speed) *emulate.Scanner {
	t.Helper()
	s, err := emulate.NewScanner(emulate.Options{Speed: speed})
	must.OK(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

// export serves dev, and returns the other end as a plug and what ends it.
func export(t testing.TB, dev usb.Device) (Plug, func()) {
	t.Helper()
	here, peer := must.Connect(t)
	return Plug{
		Conn: here, Speed: dev.Speed(), DevID: testDevID, SockFD: 3,
		From: vhci.Record{Host: "shop", Port: "3240", BusID: "1-4"},
	}, usbiptest.Serve(t, peer, testDevID, dev)
}

// answer is a peer that answers requests for descriptors, and returns with the
// first other request.
func answer(peer net.Conn, describe func(usb.Setup) ([]byte, bool)) {
	var b [usbip.HeaderSize]byte
	for {
		if _, err := io.ReadFull(peer, b[:]); err != nil {
			return
		}
		c := usbip.ParseCmdSubmit(b[:])
		setup := usb.ParseSetup(c.Setup)
		if setup.Request != usb.ReqGetDescriptor {
			return
		}
		data, ok := describe(setup)
		data = data[:min(int(c.Length), len(data))]
		r := usbip.RetSubmit{Seq: c.Seq, Actual: int32(len(data))}
		if !ok {
			r.Status = int32(usb.StatusStall)
		}
		r.Put(b[:])
		if _, err := peer.Write(append(b[:], data...)); err != nil {
			return
		}
	}
}

type driverFunc func(context.Context, Plug) (Attachment, error)

func (f driverFunc) Attach(ctx context.Context, p Plug) (Attachment, error) { return f(ctx, p) }

func (driverFunc) Restore(context.Context, Plug, []byte) (Attachment, error) {
	return nil, ErrNotRestored
}

func idle(hubPorts int) string {
	ports := make([]vhci.Port, 2*hubPorts)
	for i := range ports {
		ports[i] = vhci.Port{Number: i, Hub: vhci.Hub(i / hubPorts), Status: vhci.StatusNull}
	}
	return string(vhci.AppendStatus(nil, ports))
}

func wantStatus(t testing.TB, c *Controller, want string) {
	t.Helper()
	if got := string(c.AppendStatus(nil)); got != want {
		t.Errorf("status\n%swant\n%s", got, want)
	}
}
