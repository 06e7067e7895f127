package usbip

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
)

func TestSessionDeviceGone(t *testing.T) {
	must.NotLeak(t)
	conn, theirs := tcpPair(t)
	p := servePeer(t, conn, theirs, nil)
	p.send(submitPDU(1, intrIn, usb.Setup{}, nil, 8))
	<-p.dev.arrived
	p.dev.Close()
	if r := p.recvRetSubmit(); usb.Status(r.Status) != usb.StatusNoDevice {
		t.Errorf("answer %+v", r)
	}
	must.Is(t, <-p.ended, usb.ErrGone)
}

// TestSessionBytesLimit shows that answers the peer has not taken count.
func TestSessionBytesLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, theirs := net.Pipe()
		p := servePeer(t, conn, theirs, hostileLimits)
		for seq := range uint32(5) {
			p.send(submitPDU(1+seq, bulkIn, usb.Setup{}, nil, 16<<10))
		}
		synctest.Wait()
		for seq := range uint32(5) {
			r := p.recvRetSubmit()
			if want := map[bool]usb.Status{true: usb.StatusOK, false: usb.StatusNoMemory}[seq < 3]; usb.Status(r.Status) != want {
				t.Errorf("transfer %d: %+v, want %v", seq, r, want)
			}
			p.recv(int(r.Actual))
		}
		p.works()
		conn.Close()
		must.OK(t, p.end())
	})
}

// TestSessionCancelKeepsURB shows that a URB is not used again while the device
// still holds it in Cancel, though it has completed.
func TestSessionCancelKeepsURB(t *testing.T) {
	must.NotLeak(t)
	conn, theirs := tcpPair(t)
	p := servePeer(t, conn, theirs, nil)
	p.dev.cancel = func(u *usb.URB) {
		if u.Submitter.(*transfer).s == nil {
			t.Error("the URB was given up")
		}
	}
	p.send(submitPDU(1, intrIn, usb.Setup{}, nil, 8))
	<-p.dev.arrived
	p.send(unlinkPDU(2, 1))
	wantRetUnlink(p, 2, int32(usb.StatusCancelled))
	conn.Close()
	must.OK(t, p.end())
}

// TestSessionUnknownIsochronous is a transfer to an endpoint of another
// setting, behind whose request there are packets all the same.
// TestSessionKeptBuffer shows that memory a device keeps is not used again, and
// that nothing of it is sent.
func TestSessionKeptBuffer(t *testing.T) {
	must.NotLeak(t)
	conn, theirs := tcpPair(t)
	p := servePeer(t, conn, theirs, nil)
	kept := make(map[*byte]bool)
	p.dev.respond = func(_ *fakeDevice, u *usb.URB) bool {
		switch first := unsafe.SliceData(u.Buffer); {
		case u.Type == usb.Control:
			return false
		case !u.MayKeep || kept[first]:
			t.Errorf("a buffer that may be kept: %v, that is kept: %v", u.MayKeep, kept[first])
		default:
			kept[first] = true
		}
		u.Buffer, u.Status, u.Actual = nil, usb.StatusShutdown, len(u.Buffer)
		for i := range u.Packets {
			u.Packets[i].Actual = u.Packets[i].Length
		}
		u.Complete(u)
		return true
	}
	for seq := range uint32(10) {
		p.send(submitPDU(seq, bulkIn, usb.Setup{}, nil, 8))
		if r := p.recvRetSubmit(); usb.Status(r.Status) != usb.StatusShutdown || r.Actual != 0 {
			t.Fatalf("answer %+v", r)
		}
	}
	p.send(isoSubmitPDU(100, isoIn, 20, nil, usb.IsoPacket{Length: 10}, usb.IsoPacket{Offset: 10, Length: 10}))
	if r := p.recvRetSubmit(); r.Actual != 0 || r.Packets != 2 {
		t.Errorf("answer %+v", r)
	}
	p.recv(IsoPacketSize)
	if got := ParseIsoPacket(p.recv(IsoPacketSize)); got.Offset != 10 || got.Actual != 0 {
		t.Errorf("packet %+v", got)
	}
	p.works()
	conn.Close()
	must.OK(t, p.end())
}

func TestSessionUnknownIsochronous(t *testing.T) {
	must.NotLeak(t)
	conn, theirs := tcpPair(t)
	p := servePeer(t, conn, theirs, nil)
	p.control(usb.SetInterface(0, 1), nil)
	p.send(isoSubmitPDU(1, isoIn, 20, nil, usb.IsoPacket{Length: 10}, usb.IsoPacket{Offset: 10, Length: 10}))
	if r := p.recvRetSubmit(); usb.Status(r.Status) != usb.StatusStall || r.Packets != 2 {
		t.Errorf("answer %+v", r)
	}
	p.recv(2 * IsoPacketSize)
	p.works()
	conn.Close()
	must.OK(t, p.end())
}

func TestSessionReset(t *testing.T) {
	must.NotLeak(t)
	conn, theirs := tcpPair(t)
	p := servePeer(t, conn, theirs, nil)
	p.send(submitPDU(1, intrIn, usb.Setup{}, nil, 8))
	<-p.dev.arrived
	p.send(submitPDU(2, 0, usb.PortReset(), nil, 0))
	if r := p.recvRetSubmit(); r.Seq != 1 || usb.Status(r.Status) != usb.StatusShutdown {
		t.Errorf("transfer in flight at the reset ended with %+v", r)
	}
	if r := p.recvRetSubmit(); r.Seq != 2 || r.Status != 0 {
		t.Errorf("reset ended with %+v", r)
	}
	p.send(submitPDU(3, bulkIn, usb.Setup{}, nil, 8))
	if r := p.recvRetSubmit(); usb.Status(r.Status) != usb.StatusStall {
		t.Errorf("transfer to the unconfigured device ended with %+v", r)
	}
	conn.Close()
	must.OK(t, <-p.ended)
	if n := p.dev.resetCount(); n != 2 {
		t.Errorf("%d resets, want the peer's and that at the end", n)
	}
}

// TestSessionResetHangs shows that a device that does not reset neither stops
// the reader nor outlives the time it has.
func TestSessionResetHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, theirs := net.Pipe()
		p := &servedPeer{peer: peer{t: t, conn: conn}, dev: newFakeDevice(), ended: make(chan error, 1)}
		p.dev.reset = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		go func() { p.ended <- ServeDevice(t.Context(), theirs, benchDevID, p.dev, nil) }()
		p.configure()
		p.send(submitPDU(1, 0, usb.PortReset(), nil, 0))
		p.send(submitPDU(2, 0, usb.PortReset(), nil, 0))
		if r := p.recvRetSubmit(); r.Seq != 2 || usb.Status(r.Status) != usb.StatusNoMemory {
			t.Errorf("second reset: %+v", r)
		}
		if r := p.recvRetSubmit(); r.Seq != 1 || usb.Status(r.Status) != usb.StatusIO {
			t.Errorf("first reset: %+v", r)
		}
		conn.Close()
		if err := <-p.ended; !isResetError(err) {
			t.Errorf("session ended with %v", err)
		}
	})
}

// TestSessionEndsDuringReset shows that the end does not wait for a reset that
// nobody wants any more, but for its own.
func TestSessionEndsDuringReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, theirs := net.Pipe()
		p := &servedPeer{peer: peer{t: t, conn: conn}, dev: newFakeDevice(), ended: make(chan error, 1)}
		p.dev.reset = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		opts := &ServeOptions{ResetTimeout: time.Minute}
		go func() { p.ended <- ServeDevice(t.Context(), theirs, benchDevID, p.dev, opts) }()
		p.configure()
		p.send(submitPDU(1, 0, usb.PortReset(), nil, 0))
		synctest.Wait()
		start := time.Now()
		conn.Close()
		if err := <-p.ended; !isResetError(err) {
			t.Errorf("session ended with %v", err)
		}
		if d := time.Since(start); d != time.Minute {
			t.Errorf("session ended after %v", d)
		}
	})
}

// TestSessionPeerLeavesAnswers shows that a peer may close the connection with
// answers unread, which TCP tells as a reset.
func TestSessionPeerLeavesAnswers(t *testing.T) {
	must.NotLeak(t)
	conn, theirs := tcpPair(t)
	p := servePeer(t, conn, theirs, nil)
	p.send(submitPDU(1, 0x80, usb.Setup{RequestType: 0x80, Length: 2}, nil, 2))
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if err := p.end(); err != nil {
		t.Errorf("session ended with %v", err)
	}
}

func isResetError(err error) bool {
	_, ok := errors.AsType[*ResetError](err)
	return ok
}
