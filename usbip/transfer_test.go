package usbip

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
)

// through imports dev over each kind of connection.
func through(t *testing.T, f func(t *testing.T, dev *fakeDevice, i *Importer)) {
	for kind, pair := range map[string]func(testing.TB) (net.Conn, net.Conn){
		"tcp": tcpPair, "unix": unixPair, "pipe": pairs["pipe"],
	} {
		t.Run(kind, func(t *testing.T) {
			must.NotLeak(t)
			dev := newFakeDevice()
			conn, theirs := pair(t)
			done := make(chan error, 1)
			go func() { done <- ServeDevice(t.Context(), theirs, benchDevID, dev, nil) }()
			i, err := NewImporter(t.Context(), conn, benchDevID, usb.SpeedHigh, nil)
			must.OK(t, err)
			configure(t, i)
			f(t, dev, i)
			i.Close()
			<-done
		})
	}
}

func unixPair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", t.TempDir()+"/s")
	must.OK(t, err)
	defer l.Close()
	a, err := net.Dial("unix", l.Addr().String())
	must.OK(t, err)
	b, err := l.Accept()
	must.OK(t, err)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestIsochronousIn(t *testing.T) {
	through(t, func(t *testing.T, dev *fakeDevice, i *Importer) {
		// Short packets leave gaps, which do not travel.
		actual := []int{192, 0, 7, 100}
		dev.respond = func(_ *fakeDevice, u *usb.URB) bool {
			if u.Type != usb.Isochronous {
				return false
			}
			for n := range u.Packets {
				p := &u.Packets[n]
				p.Actual = actual[n]
				copy(u.Buffer[p.Offset:], bytes.Repeat([]byte{byte('a' + n)}, p.Actual))
			}
			u.Packets[1].Status = usb.StatusProtocol
			u.Status, u.Actual, u.Errors, u.StartFrame = usb.StatusXDev, 299, 1, 1234
			u.Complete(u)
			return true
		}
		u := isoInURB(192, 192, 192, 192)
		u.Flags, u.StartFrame, u.Interval = usb.FlagIsoASAP, 7, 1
		err := usb.Do(t.Context(), i, &u)
		must.Is(t, err, usb.StatusXDev.Err())
		if u.Actual != 299 || u.Errors != 1 || u.StartFrame != 1234 {
			t.Errorf("%d bytes, %d errors, start frame %d", u.Actual, u.Errors, u.StartFrame)
		}
		for n, p := range u.Packets {
			want := bytes.Repeat([]byte{byte('a' + n)}, actual[n])
			if p.Actual != actual[n] || !bytes.Equal(u.Buffer[p.Offset:p.Offset+p.Actual], want) || p.Offset != n*192 || p.Length != 192 {
				t.Errorf("packet %d: %+v, %q", n, p, u.Buffer[p.Offset:p.Offset+p.Actual])
			}
		}
		if u.Packets[1].Status != usb.StatusProtocol || u.Packets[0].Status != usb.StatusOK {
			t.Errorf("statuses of %+v", u.Packets)
		}
	})
}

func TestIsochronousOut(t *testing.T) {
	through(t, func(t *testing.T, dev *fakeDevice, i *Importer) {
		want := []byte("abc......defgh..i")
		dev.respond = func(_ *fakeDevice, u *usb.URB) bool {
			if u.Type != usb.Isochronous {
				return false
			}
			if !bytes.Equal(u.Buffer, want) || len(u.Packets) != 3 || u.Packets[1] != (usb.IsoPacket{Offset: 9, Length: 5}) {
				t.Errorf("device gets %q, %+v", u.Buffer, u.Packets)
			}
			if u.Flags != usb.FlagIsoASAP || u.StartFrame != 7 || u.Interval != 8 {
				t.Errorf("device gets flags %#x, start frame %d, interval %d", u.Flags, u.StartFrame, u.Interval)
			}
			u.Packets[0].Actual, u.Packets[1].Actual, u.Packets[2].Actual = 3, 4, 1
			u.Status, u.Actual = usb.StatusOK, 8
			u.Complete(u)
			return true
		}
		u := usb.URB{
			Type: usb.Isochronous, Endpoint: isoOut, Buffer: bytes.Clone(want),
			Packets: []usb.IsoPacket{{Offset: 0, Length: 3}, {Offset: 9, Length: 5}, {Offset: 16, Length: 1}},
			Flags:   usb.FlagIsoASAP | 0x4000, StartFrame: 7, Interval: 8,
		}
		must.OK(t, usb.Do(t.Context(), i, &u))
		if u.Actual != 8 || u.Packets[0].Actual != 3 || u.Packets[1].Actual != 4 || u.Packets[2].Actual != 1 {
			t.Errorf("%d bytes, %+v", u.Actual, u.Packets)
		}
	})
}

// TestIsochronousStream keeps many transfers of many packets in flight.
func TestIsochronousStream(t *testing.T) {
	through(t, func(t *testing.T, dev *fakeDevice, i *Importer) {
		var next byte
		dev.respond = func(_ *fakeDevice, u *usb.URB) bool {
			if u.Type != usb.Isochronous {
				return false
			}
			for n := range u.Packets {
				u.Buffer[u.Packets[n].Offset] = next
				next++
				u.Packets[n].Actual = 1
			}
			u.Status, u.Actual = usb.StatusOK, len(u.Packets)
			u.Complete(u)
			return true
		}
		const inFlight, rounds, packets = 8, 100, 32
		lengths := make([]int, packets)
		for n := range lengths {
			lengths[n] = 100
		}
		var want byte
		left := inFlight * rounds
		done := make(chan struct{})
		complete := func(u *usb.URB) {
			for _, p := range u.Packets {
				if p.Actual != 1 || u.Buffer[p.Offset] != want {
					t.Errorf("packet %+v holds %d, want %d", p, u.Buffer[p.Offset], want)
				}
				want++
			}
			if left--; left == 0 {
				close(done)
			} else if left >= inFlight {
				if err := i.Submit(u); err != nil {
					t.Error(err)
				}
			}
		}
		for range inFlight {
			u := isoInURB(lengths...)
			u.Complete = complete
			must.OK(t, i.Submit(&u))
		}
		<-done
	})
}

func TestShortAndFailedTransfers(t *testing.T) {
	through(t, func(t *testing.T, dev *fakeDevice, i *Importer) {
		outcomes := []struct {
			status usb.Status
			actual int
		}{{usb.StatusOK, 0}, {usb.StatusOK, 7}, {usb.StatusStall, 0}, {usb.StatusOverflow, 64}, {usb.StatusRemoteShort, 3}, {-9999, 0}, {5, 1}}
		for _, want := range outcomes {
			dev.respond = func(_ *fakeDevice, u *usb.URB) bool {
				u.Status, u.Actual = want.status, copy(u.Buffer, make([]byte, want.actual))
				u.Complete(u)
				return true
			}
			for _, u := range []usb.URB{bulkInURB(64), bulkOutURB(64)} {
				err := usb.Do(t.Context(), i, &u)
				if u.Status != want.status || u.Actual != want.actual || (err == nil) != (want.status == 0) {
					t.Errorf("%v: %v, %d bytes, want %v, %d", u.Endpoint, err, u.Actual, want.status, want.actual)
				}
			}
		}
	})
}

// TestDeviceOverstates shows that a device that claims more than there is, or
// leaves a buffer as it was, gives the peer nothing of other transfers.
func TestDeviceOverstates(t *testing.T) {
	through(t, func(t *testing.T, dev *fakeDevice, i *Importer) {
		secret := bulkOutURB(100)
		copy(secret.Buffer, bytes.Repeat([]byte("secret"), 20))
		must.OK(t, usb.Do(t.Context(), i, &secret))
		dev.respond = func(_ *fakeDevice, u *usb.URB) bool {
			u.Status, u.Actual = usb.StatusOK, math.MaxInt
			u.Complete(u)
			return true
		}
		u := bulkInURB(100)
		u.Buffer[0] = 1
		must.OK(t, usb.Do(t.Context(), i, &u))
		if u.Actual != 100 || !bytes.Equal(u.Buffer, make([]byte, 100)) {
			t.Errorf("%d bytes: %q", u.Actual, u.Buffer)
		}
	})
}

func TestAlternateSettings(t *testing.T) {
	through(t, func(t *testing.T, dev *fakeDevice, i *Importer) {
		u := usb.URB{Type: usb.Bulk, Endpoint: altIn, Buffer: make([]byte, 4)}
		must.Is(t, usb.Do(t.Context(), i, &u), usb.ErrNoEndpoint)
		_, err := usb.ControlTransfer(t.Context(), i, usb.SetInterface(0, 1), nil)
		must.OK(t, err)
		must.OK(t, usb.Do(t.Context(), i, &u))
		gone := bulkInURB(4)
		must.Is(t, usb.Do(t.Context(), i, &gone), usb.ErrNoEndpoint)
	})
}

// TestSubmitErrors shows what a device that takes no URB looks like from afar.
func TestSubmitErrors(t *testing.T) {
	for err, want := range map[error]usb.Status{
		usb.ErrTooMany: usb.StatusNoMemory, usb.ErrNoEndpoint: usb.StatusStall, usb.ErrInvalid: usb.StatusInvalid,
		fmt.Errorf("wrapped: %w", usb.ErrGone): usb.StatusNoDevice, errors.New("other"): usb.StatusInvalid,
	} {
		if got := submitStatus(err); got != want {
			t.Errorf("%v becomes %v, want %v", err, got, want)
		}
	}
}

// throughTwo has dev imported, exported again, and imported from there.
func throughTwo(t *testing.T, dev usb.Device) (first, second *Importer) {
	t.Helper()
	inner, outer := &Exporter{}, &Exporter{}
	must.OK(t, inner.Add("1-1", dev))
	first = importFrom(t, startExporter(t, inner), "1-1", nil)
	must.OK(t, outer.Add("2-1", first))
	second = importFrom(t, startExporter(t, outer), "2-1", nil)
	configure(t, second)
	return first, second
}

// TestUnlinkRaces cancels transfers while they complete, through two exporters
// in a row, and holds every one to the contract: one Complete, the true
// outcome, the order of each endpoint, nothing left.
func TestUnlinkRaces(t *testing.T) {
	must.NotLeak(t)
	dev := newFakeDevice()
	first, second := throughTwo(t, dev)

	stop := make(chan struct{})
	var device sync.WaitGroup
	device.Go(func() { completeAtRandom(dev, stop) })
	var users sync.WaitGroup
	rounds := 2000
	if testing.Short() {
		rounds = 200
	}
	for n := range 4 {
		users.Go(func() { cancelAtRandom(t, second, rand.New(rand.NewPCG(1, uint64(n))), rounds) })
	}
	users.Wait()
	close(stop)
	device.Wait()
	for _, i := range []*Importer{first, second} {
		i.mu.Lock()
		if i.inFlight != 0 || i.bytes != 0 || len(i.requests) != len(i.late) {
			t.Errorf("%d URBs, %d bytes, %d requests are left", i.inFlight, i.bytes, len(i.requests))
		}
		i.mu.Unlock()
	}
	u := bulkInURB(16)
	must.OK(t, usb.Do(t.Context(), second, &u))
}

// completeAtRandom completes transfers with data, some of them a little later.
func completeAtRandom(dev *fakeDevice, stop chan struct{}) {
	r := rand.New(rand.NewPCG(2, 2))
	for {
		select {
		case <-stop:
			return
		case u := <-dev.arrived:
			for range r.IntN(4) {
				runtime.Gosched()
			}
			dev.finish(u, usb.StatusOK, []byte("data"))
		}
	}
}

func cancelAtRandom(t *testing.T, dev usb.Device, r *rand.Rand, rounds int) {
	for range rounds {
		var completed atomic.Int32
		done := make(chan struct{})
		u := usb.URB{Type: usb.Interrupt, Endpoint: intrIn, Buffer: make([]byte, 8)}
		u.Complete = func(*usb.URB) {
			if completed.Add(1) == 1 {
				close(done)
			}
		}
		if err := dev.Submit(&u); err != nil {
			t.Error(err)
			return
		}
		for range r.IntN(3) {
			dev.Cancel(&u)
		}
		<-done
		dev.Cancel(&u)
		switch {
		case u.Status == usb.StatusOK && u.Actual == 4 && string(u.Buffer[:4]) == "data":
		case u.Status == usb.StatusCancelled && u.Actual == 0:
		default:
			t.Errorf("transfer ended with %v, %q", u.Status, u.Buffer[:u.Actual])
		}
		if n := completed.Load(); n != 1 {
			t.Errorf("completed %d times", n)
		}
	}
}

// TestOrderWithinEndpoint submits in order from within completions.
func TestOrderWithinEndpoint(t *testing.T) {
	through(t, func(t *testing.T, dev *fakeDevice, i *Importer) {
		var got []byte
		var mu sync.Mutex
		dev.respond = func(_ *fakeDevice, u *usb.URB) bool {
			if u.Endpoint != bulkOut {
				return false
			}
			mu.Lock()
			got = append(got, u.Buffer[0])
			mu.Unlock()
			return false
		}
		const count = 500
		var next, completed byte
		finished := 0
		done := make(chan struct{})
		var complete func(u *usb.URB)
		submit := func(u *usb.URB) {
			u.Buffer[0] = next
			next++
			if err := i.Submit(u); err != nil {
				t.Error(err)
			}
		}
		complete = func(u *usb.URB) {
			if u.Buffer[0] != completed {
				t.Errorf("transfer %d completed, want %d", u.Buffer[0], completed)
			}
			completed++
			if finished++; finished == count {
				close(done)
			} else if finished+8 <= count {
				submit(u)
			}
		}
		gate := make(chan struct{})
		first := bulkOutURB(1)
		first.Complete = func(*usb.URB) { // on the reader, as all that follow
			for n := range 8 {
				u := bulkOutURB(1 + n*2000)
				u.Complete = complete
				submit(&u)
			}
			close(gate)
		}
		must.OK(t, i.Submit(&first))
		<-gate
		<-done
		mu.Lock()
		defer mu.Unlock()
		for n, b := range got[1:] {
			if b != byte(n) {
				t.Fatalf("device gets %d in place %d", b, n)
			}
		}
	})
}

// TestResetThroughTwo resets a device through two exporters in a row.
func TestResetThroughTwo(t *testing.T) {
	must.NotLeak(t)
	dev := newFakeDevice()
	first, second := throughTwo(t, dev)
	u := usb.URB{Type: usb.Interrupt, Endpoint: intrIn, Buffer: make([]byte, 8)}
	done := make(chan struct{})
	u.Complete = func(*usb.URB) { close(done) }
	must.OK(t, second.Submit(&u))
	<-dev.arrived
	must.OK(t, second.Reset(t.Context()))
	select {
	case <-done:
	default:
		t.Error("Reset returned ahead of a Complete")
	}
	if dev.resetCount() != 1 {
		t.Errorf("%d resets", dev.resetCount())
	}
	dev.Close()
	<-first.Gone()
	<-second.Gone()
}
