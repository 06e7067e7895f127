package usbip

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/internal/thread"
	"github.com/usbns/usbns/usb"
)

// A machine is a network namespace: alone on one end of a cable.
type machine struct {
	t  *testing.T
	ns *os.File
}

// newMachines returns two machines with a cable between them, the first of which
// has the address 10.0.0.1.
func newMachines(t *testing.T) (a, b machine) {
	t.Helper()
	if _, err := exec.LookPath("ip"); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and ip(8), to lay a cable")
	}
	a, b = newMachine(t), newMachine(t)
	if err := a.ip("link", "add", "cable0", "type", "veth", "peer", "name", "cable1", "netns", b.path()); err != nil {
		t.Skip("no cables here: ", err)
	}
	for n, m := range []machine{a, b} {
		end := fmt.Sprint("cable", n)
		must.OK(t, m.ip("addr", "add", fmt.Sprintf("10.0.0.%d/24", 1+n), "dev", end))
		must.OK(t, m.ip("link", "set", end, "up"))
		must.OK(t, m.ip("link", "set", "lo", "up"))
	}
	return a, b
}

func newMachine(t *testing.T) machine {
	t.Helper()
	m := machine{t: t}
	if err := thread.Run(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		m.ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	}); err != nil {
		t.Skip("no network namespaces here: ", err)
	}
	t.Cleanup(func() { m.ns.Close() })
	return m
}

func (m machine) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), m.ns.Fd()) }

// run runs f on the machine: the sockets it makes are there for good.
func (m machine) run(f func() error) error {
	return thread.Run(func() error {
		if err := unix.Setns(int(m.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

func (m machine) ip(args ...string) error {
	return m.run(func() error {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %q: %w: %s", args, err, out)
		}
		return nil
	})
}

func (m machine) listen(addr string) (l net.Listener) {
	m.t.Helper()
	must.OK(m.t, m.run(func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	}))
	return l
}

func (m machine) importFrom(addr, busid string) (i *Importer) {
	m.t.Helper()
	must.OK(m.t, m.run(func() error {
		conn, err := Dial(m.t.Context(), addr)
		if err == nil {
			i, err = Import(m.t.Context(), conn, busid, nil)
		}
		return err
	}))
	m.t.Cleanup(func() { i.Close() })
	return i
}

// TestCableIsCut pulls the importer's end. The exporter frees both of its devices,
// the idle one and the one that had something to say just then, and whoever can
// still reach it gets them.
func TestCableIsCut(t *testing.T) {
	t.Parallel()
	exporter, importer := newMachines(t)
	events := make(chan Event, 8)
	e := &Exporter{
		ServeOptions: ServeOptions{Limits: Limits{PeerTimeout: 2 * time.Second}},
		OnEvent:      func(ev Event) { events <- ev },
	}
	next := func() (ev Event) {
		t.Helper()
		select {
		case ev = <-events:
		case <-time.After(must.Patience):
			t.Fatalf("no event after %v", must.Patience)
		}
		return ev
	}
	idle, talking := newFakeDevice(), newFakeDevice()
	must.OK(t, e.Add("1-1", idle))
	must.OK(t, e.Add("1-2", talking))
	addr := serveOn(t, e, exporter.listen("10.0.0.1:0"))
	configure(t, importer.importFrom(addr, "1-1"))
	i := importer.importFrom(addr, "1-2")
	configure(t, i)
	must.OK(t, i.Submit(&usb.URB{Type: usb.Interrupt, Endpoint: intrIn, Buffer: make([]byte, 8), Complete: func(*usb.URB) {}}))
	u := <-talking.arrived
	for range 2 {
		if ev := next(); ev.Kind != Imported {
			t.Fatalf("event %+v", ev)
		}
	}

	must.OK(t, importer.ip("link", "set", "cable1", "down"))
	talking.finish(u, usb.StatusOK, []byte{1})
	for range 2 {
		// The address may be given up before the connection is.
		if ev := next(); ev.Kind != Released || !errors.Is(ev.Err, syscall.ETIMEDOUT) && !errors.Is(ev.Err, syscall.EHOSTUNREACH) {
			t.Errorf("event %+v", ev)
		}
	}
	for _, busid := range []string{"1-1", "1-2"} {
		exporter.importFrom(addr, busid)
	}
	if idle.resetCount() != 1 || talking.resetCount() != 1 {
		t.Errorf("%d and %d resets", idle.resetCount(), talking.resetCount())
	}
}
