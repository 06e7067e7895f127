package controller

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/policy"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
	"github.com/usbns/usbns/vhci"
)

const testDevID = 0x10002

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

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

// noLeaks fails the test if goroutines of this module are left at its end.
func noLeaks(t testing.TB) {
	t.Helper()
	t.Cleanup(func() {
		deadline := time.Now().Add(10 * time.Second)
		for {
			left := goroutines()
			if len(left) == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("goroutines are left:\n%s", strings.Join(left, "\n\n"))
				return
			}
			runtime.Gosched()
		}
	})
}

func goroutines() []string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var ours []string
	for _, g := range strings.Split(string(buf), "\n\n")[1:] {
		for _, pkg := range []string{"/usbip.", "/emulate.", "/controller.(*", "/usb."} {
			if strings.Contains(g, "usbns"+pkg) {
				ours = append(ours, g)
				break
			}
		}
	}
	return ours
}

// newController returns the only controller of a table that tells its events.
func newController(t testing.TB, d Driver) (*Controller, <-chan Event) {
	t.Helper()
	events := make(chan Event, 100)
	table := &Table{OnEvent: func(e Event) { events <- e }}
	t.Cleanup(table.Close)
	made, err := table.Create(Config{Name: "pad", HubPorts: 2, Driver: d, Policy: policy.Open()}, 1)
	must(t, err)
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
	must(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

// connect returns both ends of a TCP connection.
func connect(t testing.TB) (here, peer net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	here, err = net.Dial("tcp", l.Addr().String())
	must(t, err)
	peer, err = l.Accept()
	must(t, err)
	t.Cleanup(func() { here.Close(); peer.Close() })
	return here, peer
}

// export serves dev, and returns the other end as a plug and what ends it.
func export(t testing.TB, dev usb.Device) (Plug, func()) {
	t.Helper()
	here, peer := connect(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		usbip.ServeDevice(ctx, peer, testDevID, dev, nil)
	}()
	stop := func() { cancel(); <-done }
	t.Cleanup(stop)
	return Plug{
		Conn: here, Speed: dev.Speed(), DevID: testDevID, SockFD: 3,
		From: vhci.Record{Host: "shop", Port: "3240", BusID: "1-4"},
	}, stop
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
