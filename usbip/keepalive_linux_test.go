package usbip

import (
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
)

// vanish makes the machine at conn's end disappear for the other one: a filter
// drops every packet that arrives, so that not even its kernel answers.
func vanish(t *testing.T, conn net.Conn) {
	t.Helper()
	rc, err := conn.(*net.TCPConn).SyscallConn()
	must.OK(t, err)
	drop := unix.SockFprog{Len: 1, Filter: &unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}}
	must.OK(t, rc.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &drop)
	}))
	must.OK(t, err)
}

// TestPeerVanishes shows both roles that nobody is there any more: the exporter
// frees the device, the importer gives it up. Here it is silence that tells, and
// in [TestCableIsCut] what the kernel knows of its own end of a cable as well.
func TestPeerVanishes(t *testing.T) {
	t.Parallel()
	limits := Limits{PeerTimeout: 2 * time.Second}
	// start imports a device, configured; ev gets the exporter's events.
	start := func(t *testing.T) (dev *fakeDevice, imp *Importer, ev chan Event) {
		ev = make(chan Event, 8)
		e := &Exporter{ServeOptions: ServeOptions{Limits: limits}, OnEvent: func(e Event) { ev <- e }}
		dev = newFakeDevice()
		must.OK(t, e.Add("1-1", dev))
		imp = importFrom(t, startExporter(t, e), "1-1", nil)
		configure(t, imp)
		<-ev // Imported
		return dev, imp, ev
	}
	released := func(t *testing.T, dev *fakeDevice, ev chan Event) {
		t.Helper()
		if e := <-ev; e.Kind != Released || !errors.Is(e.Err, syscall.ETIMEDOUT) {
			t.Errorf("event %+v", e)
		}
		if dev.resetCount() != 1 {
			t.Errorf("%d resets", dev.resetCount())
		}
	}
	waiting := func(t *testing.T, dev *fakeDevice, imp *Importer) (u *usb.URB, done chan struct{}) {
		u = &usb.URB{Type: usb.Interrupt, Endpoint: intrIn, Buffer: make([]byte, 8)}
		done = make(chan struct{})
		u.Complete = func(*usb.URB) { close(done) }
		must.OK(t, imp.Submit(u))
		return <-dev.arrived, done
	}
	t.Run("importer, idle", func(t *testing.T) {
		t.Parallel()
		dev, imp, ev := start(t)
		vanish(t, imp.conn)
		released(t, dev, ev)
	})
	t.Run("importer, with an answer on its way", func(t *testing.T) {
		t.Parallel()
		dev, imp, ev := start(t)
		u, _ := waiting(t, dev, imp)
		vanish(t, imp.conn)
		dev.finish(u, usb.StatusOK, []byte{1})
		released(t, dev, ev)
	})
	t.Run("exporter", func(t *testing.T) {
		t.Parallel()
		conn, theirs := tcpPair(t)
		imp, err := NewImporter(t.Context(), conn, benchDevID, usb.SpeedHigh, &ImportOptions{Descriptors: fakeDescriptors(), Limits: limits})
		must.OK(t, err)
		defer imp.Close()
		vanish(t, theirs)
		<-imp.Gone()
		must.Is(t, imp.Err(), syscall.ETIMEDOUT)
	})
}
