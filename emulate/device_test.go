package emulate

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"testing/synctest"

	"github.com/usbns/usbns/usb"
)

// newDevice makes a device with two settings and endpoints of all types, all of
// whose handlers are h.
func newDevice(t testing.TB, h Handler) *Device {
	t.Helper()
	desc, err := Description{
		Vendor: vendorTest, Product: 0x0010,
		Configurations: []Configuration{{
			RemoteWakeup: true,
			SelfPowered:  true,
			Interfaces: []Interface{
				{Class: classVendor},
				{Class: classVendor, Alternate: 1, Endpoints: []Endpoint{
					{Address: 0x01, Type: usb.Bulk, MaxPacket: 512},
					{Address: 0x81, Type: usb.Bulk, MaxPacket: 512},
					{Address: 0x83, Type: usb.Isochronous, MaxPacket: 1024, Interval: 4},
				}},
				{Number: 1, Class: classVendor, Endpoints: []Endpoint{
					{Address: 0x82, Type: usb.Interrupt, MaxPacket: 8, Interval: 4},
				}},
			},
		}},
	}.Build(usb.SpeedHigh)
	if err != nil {
		t.Fatal(err)
	}
	d, err := New(Config{
		Speed: usb.SpeedHigh, Descriptors: desc,
		Endpoints: map[usb.Address]Handler{0x01: h, 0x81: h, 0x82: h, 0x83: h},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	for _, s := range []usb.Setup{usb.SetConfiguration(1), usb.SetInterface(0, 1)} {
		if _, err := usb.ControlTransfer(context.Background(), d, s, nil); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func never(*usb.URB) bool { return false }

func bulkIn() *usb.URB { return &usb.URB{Endpoint: 0x81, Type: usb.Bulk, Buffer: make([]byte, 512)} }

// begin submits without waiting; the channel is closed at Complete.
func begin(t testing.TB, d *Device, u *usb.URB) <-chan struct{} {
	t.Helper()
	done := make(chan struct{})
	u.Complete = func(*usb.URB) { close(done) }
	if err := d.Submit(u); err != nil {
		t.Fatal(err)
	}
	return done
}

func TestNewRefusesBadConfigs(t *testing.T) {
	good := newDevice(t, never).Descriptors()
	for name, c := range map[string]Config{
		"no descriptors":      {Speed: usb.SpeedFull},
		"no speed":            {Descriptors: good},
		"handler for no one":  {Speed: usb.SpeedHigh, Descriptors: good, Endpoints: map[usb.Address]Handler{0x84: never}},
		"handler for control": {Speed: usb.SpeedHigh, Descriptors: good, Endpoints: map[usb.Address]Handler{0x00: never}},
	} {
		if d, err := New(c); err == nil {
			d.Close()
			t.Errorf("%s: no error", name)
		}
	}
}

// A transfer that is not done stays, with what it has moved, until Wake.
func TestWakeTriesTheHeadAgain(t *testing.T) {
	ready := false
	d := newDevice(t, func(u *usb.URB) bool {
		u.Actual++
		return ready
	})
	u := bulkIn()
	done := begin(t, d, u)
	d.Wake(0x81)
	d.Wake(0x01) // another endpoint
	select {
	case <-done:
		t.Fatal("completed though the handler was not done")
	default:
	}
	ready = true
	d.Wake(0x81)
	<-done
	if u.Status != usb.StatusOK || u.Actual != 3 {
		t.Errorf("status %v, handed over %d times, want 3", u.Status, u.Actual)
	}
}

// Nothing is left in a URB from the last time.
func TestSubmitStartsAnew(t *testing.T) {
	d := newDevice(t, func(u *usb.URB) bool {
		if u.Status != 0 || u.Actual != 0 || u.Errors != 0 || u.Holder != nil {
			t.Errorf("handed over %+v", *u)
		}
		u.Actual, u.Errors, u.Holder = 7, 7, "mine"
		return true
	})
	u := bulkIn()
	for range 2 {
		<-begin(t, d, u)
	}
}

// What a handler finishes while it is cancelled has succeeded.
func TestCancelLosesToTheHandler(t *testing.T) {
	var d *Device
	d = newDevice(t, func(u *usb.URB) bool {
		d.Cancel(u)
		return Reply(u, []byte("done"))
	})
	u := bulkIn()
	<-begin(t, d, u)
	if u.Status != usb.StatusOK || u.Actual != 4 {
		t.Errorf("status %v, %d bytes", u.Status, u.Actual)
	}
}

func TestCancelWinsOverAnIdleHandler(t *testing.T) {
	var d *Device
	d = newDevice(t, func(u *usb.URB) bool {
		d.Cancel(u)
		return false
	})
	u := bulkIn()
	<-begin(t, d, u)
	if u.Status != usb.StatusCancelled {
		t.Errorf("status %v, want %v", u.Status, usb.StatusCancelled)
	}
}

// When the head is cancelled, the next one gets its turn.
func TestCancelOfHeadLetsTheNextThrough(t *testing.T) {
	first := bulkIn()
	d := newDevice(t, func(u *usb.URB) bool { return u != first })
	a, second := begin(t, d, first), bulkIn()
	b := begin(t, d, second)
	d.Cancel(first)
	<-a
	<-b
	if second.Status != usb.StatusOK {
		t.Errorf("status %v", second.Status)
	}
}

// A handler that stalls halts its endpoint, and control transfers never stay
// halted.
func TestStallHalts(t *testing.T) {
	calls := 0
	d := newDevice(t, func(u *usb.URB) bool {
		calls++
		return Stall(u)
	})
	for range 3 {
		u := bulkIn()
		if <-begin(t, d, u); u.Status != usb.StatusStall {
			t.Errorf("status %v", u.Status)
		}
	}
	if calls != 1 {
		t.Errorf("the handler of a halted endpoint was called %d times", calls)
	}
	mustControl(t, d, usb.ClearHalt(0x81), nil)
	<-begin(t, d, bulkIn())
	if calls != 2 {
		t.Error("the endpoint stayed halted")
	}
	mustControl(t, d, usb.SetInterface(0, 1), nil)
	<-begin(t, d, bulkIn())
	if calls != 3 {
		t.Error("the endpoint stayed halted through SET_INTERFACE")
	}
}

func TestTooManyTransfers(t *testing.T) {
	d := newDevice(t, never)
	u := bulkIn()
	for range maxQueued {
		begin(t, d, bulkIn())
	}
	u.Complete = func(*usb.URB) { t.Error("a refused transfer completed") }
	if err := d.Submit(u); !errors.Is(err, usb.ErrTooMany) {
		t.Errorf("%v, want %v", err, usb.ErrTooMany)
	}
}

func TestIsochronousPacketsLieInTheBuffer(t *testing.T) {
	d := newDevice(t, func(*usb.URB) bool { return true })
	for name, p := range map[string][]usb.IsoPacket{
		"more than fits":  {{Offset: 0, Length: 1025}},
		"none":            nil,
		"negative offset": {{Offset: -1, Length: 1}},
		"negative length": {{Length: -1}},
		"past the end":    {{Offset: 2040, Length: 9}},
		"offset too far":  {{Offset: 2049, Length: 0}},
		"sum wraps":       {{Offset: 8, Length: int(^uint(0) >> 1)}},
	} {
		u := &usb.URB{Endpoint: 0x83, Type: usb.Isochronous, Buffer: make([]byte, 2048), Packets: p}
		if err := d.Submit(u); !errors.Is(err, usb.ErrInvalid) {
			t.Errorf("%s: %v, want %v", name, err, usb.ErrInvalid)
		}
	}
	u := &usb.URB{
		Endpoint: 0x83, Type: usb.Isochronous, Buffer: make([]byte, 16),
		Packets: []usb.IsoPacket{{Offset: 0, Length: 8, Actual: 3, Status: usb.StatusXDev}, {Offset: 8, Length: 8}},
	}
	<-begin(t, d, u)
	if p := u.Packets[0]; p.Actual != 0 || p.Status != usb.StatusOK {
		t.Errorf("packet started with %+v", p)
	}
}

// A transfer that is submitted again whenever it completes, and completes at
// once, does not keep Submit from returning.
func TestSubmitReturnsThoughWorkGoesOn(t *testing.T) {
	d := newDevice(t, func(u *usb.URB) bool { return Reply(u, []byte{1}) })
	u := bulkIn()
	stopped := make(chan struct{})
	u.Complete = func(u *usb.URB) {
		if d.Submit(u) != nil {
			close(stopped)
		}
	}
	if err := d.Submit(u); err != nil {
		t.Fatal(err)
	}
	d.Close()
	<-stopped
	<-d.Gone()
}

// Complete may use the device in every way that does not wait.
func TestCompleteMayCallTheDevice(t *testing.T) {
	d := newDevice(t, never)
	u := bulkIn()
	done := make(chan struct{})
	u.Complete = func(u *usb.URB) {
		d.Cancel(u)
		d.Wake(0x81)
		d.Halt(0x01)
		if err := d.Submit(&usb.URB{Endpoint: 0x82, Type: usb.Interrupt, Complete: func(*usb.URB) {}}); err != nil {
			t.Error(err)
		}
		d.Close()
		close(done)
	}
	if err := d.Submit(u); err != nil {
		t.Fatal(err)
	}
	d.Cancel(u)
	<-done
	<-d.Gone()
}

func TestGoneWaitsForTheLastComplete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDevice(t, never)
		u, release := bulkIn(), make(chan struct{})
		u.Complete = func(*usb.URB) { <-release }
		if err := d.Submit(u); err != nil {
			t.Fatal(err)
		}
		go d.Cancel(u)
		synctest.Wait()
		d.Close()
		select {
		case <-d.Gone():
			t.Error("gone while a transfer was completing")
		default:
		}
		close(release)
		<-d.Gone()
	})
}

func TestResetEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDevice(t, never)
		u, release := bulkIn(), make(chan struct{})
		u.Complete = func(*usb.URB) { <-release }
		if err := d.Submit(u); err != nil {
			t.Fatal(err)
		}
		go d.Cancel(u)
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := d.Reset(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Reset: %v, want %v", err, context.Canceled)
		}
		close(release)
		if err := d.Reset(t.Context()); err != nil {
			t.Errorf("Reset: %v", err)
		}
	})
}

func TestNoGoroutineWhileIdle(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 100 {
		l, err := NewLoopback(Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		mustControl(t, l, usb.SetConfiguration(1), nil)
		if err := l.Submit(&usb.URB{
			Endpoint: LoopbackBulkIn, Type: usb.Bulk, Buffer: make([]byte, 8), Complete: func(*usb.URB) {},
		}); err != nil {
			t.Fatal(err)
		}
	}
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("%d goroutines, %d before there were 100 devices", after, before)
	}
}

// echoOnce moves one transfer out and back.
func echoOnce(l *Loopback, out, in *usb.URB, done chan struct{}) {
	if l.Submit(in) != nil || l.Submit(out) != nil {
		panic("refused")
	}
	<-done
	<-done
}

func newEcho(t testing.TB, size int) (l *Loopback, out, in *usb.URB, done chan struct{}) {
	l, err := NewLoopback(Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if _, err := usb.ControlTransfer(context.Background(), l, usb.SetConfiguration(1), nil); err != nil {
		t.Fatal(err)
	}
	done = make(chan struct{}, 2)
	complete := func(*usb.URB) { done <- struct{}{} }
	out = &usb.URB{Endpoint: LoopbackBulkOut, Type: usb.Bulk, Buffer: make([]byte, size), Complete: complete}
	in = &usb.URB{Endpoint: LoopbackBulkIn, Type: usb.Bulk, Buffer: make([]byte, size), Complete: complete}
	return l, out, in, done
}

func TestTransfersDoNotAllocate(t *testing.T) {
	l, out, in, done := newEcho(t, 64<<10)
	if n := testing.AllocsPerRun(100, func() { echoOnce(l, out, in, done) }); n != 0 {
		t.Errorf("%v allocations to send 64 KiB there and back", n)
	}
	status := &usb.URB{
		Endpoint: usb.DirIn, Setup: usb.Setup{RequestType: usb.DirIn, Request: usb.ReqGetStatus, Length: 2},
		Buffer: make([]byte, 2), Complete: func(*usb.URB) { done <- struct{}{} },
	}
	if n := testing.AllocsPerRun(100, func() {
		if l.Submit(status) != nil {
			panic("refused")
		}
		<-done
	}); n != 0 {
		t.Errorf("%v allocations for a control transfer", n)
	}
}

func BenchmarkEcho(b *testing.B) {
	for _, c := range []struct {
		name string
		size int
	}{{"64", 64}, {"64KiB", 64 << 10}} {
		b.Run(c.name, func(b *testing.B) {
			l, out, in, done := newEcho(b, c.size)
			b.SetBytes(int64(2 * c.size))
			b.ReportAllocs()
			for b.Loop() {
				echoOnce(l, out, in, done)
			}
		})
	}
}

func BenchmarkIdleDevice(b *testing.B) {
	var before, after runtime.MemStats
	devices := make([]*Scanner, 1000)
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		for i := range devices {
			s, err := NewScanner(Options{})
			if err != nil {
				b.Fatal(err)
			}
			devices[i] = s
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(len(devices)), "B/device")
		for i, s := range devices {
			s.Close()
			devices[i] = nil
		}
	}
}
