package controller

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/policy"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
	"github.com/usbns/usbns/vhci"
)

const header = "hub port sta spd dev      sockfd local_busid\n"

func TestAttachUseDetach(t *testing.T) {
	must.NotLeak(t)
	scanner := newScanner(t, 0)
	plug, _ := export(t, scanner)
	c, events := newController(t, &User{})
	wantStatus(t, c, idle(2))

	port, err := c.Attach(t.Context(), 1, plug)
	must.OK(t, err)
	if port != 1 {
		t.Errorf("port %d", port)
	}
	wantEvent(t, events, Attached, 1)
	wantStatus(t, c, header+
		"hs  0000 004 000 00000000 000000 0-0\n"+
		"hs  0001 006 002 00010002 000003 1-2\n"+
		"ss  0002 004 000 00000000 000000 0-0\n"+
		"ss  0003 004 000 00000000 000000 0-0\n")

	d := scanner.Descriptors()
	info := c.Ports()[1]
	if info.From != plug.From || info.Vendor != d.Device().Vendor || info.Product != d.Device().Product ||
		info.ProductName != d.Product() || info.SerialNumber != "0001" {
		t.Errorf("port is %+v", info)
	}

	scanned := make(chan error, 1)
	go func() { scanned <- scanner.Scan(t.Context(), "7") }()
	dev := c.Device(1)
	var report [8]byte
	must.OK(t, usb.Do(t.Context(), dev, &usb.URB{Type: usb.Interrupt, Endpoint: 0x81, Buffer: report[:]}))
	if report[2] != 0x24 { // the usage of 7 on a keyboard
		t.Errorf("report % x", report)
	}

	must.OK(t, c.Detach(1))
	if e := wantEvent(t, events, Detached, 1); e.Err != nil {
		t.Errorf("detached with %v", e.Err)
	}
	<-dev.Gone()
	if err := <-scanned; err == nil {
		t.Error("a scan came to its end without a host")
	}
	wantStatus(t, c, idle(2))
	if c.Device(1) != nil {
		t.Error("a device is on a free port")
	}
	wantErrno(t, c.Detach(1), syscall.EINVAL)
}

func TestSpeedChoosesTheHalf(t *testing.T) {
	must.NotLeak(t)
	for _, tt := range []struct {
		speed      usb.Speed
		port, want int
		busid      string
	}{
		{usb.SpeedFull, 0, 0, "1-1"},
		{usb.SpeedFull, 3, 1, "1-2"},
		{usb.SpeedHigh, 1, 1, "1-2"},
		{usb.SpeedSuper, 1, 3, "2-2"},
		{usb.SpeedSuper, 2, 2, "2-1"},
	} {
		t.Run(fmt.Sprintf("%v on %d", tt.speed, tt.port), func(t *testing.T) {
			c, _ := newController(t, &User{})
			s := newScanner(t, tt.speed)
			port, err := c.Attach(t.Context(), tt.port, Plug{Device: s})
			must.OK(t, err)
			if got := c.Ports()[tt.want]; port != tt.want || got.BusID != tt.busid || got.Status != vhci.StatusUsed {
				t.Errorf("port %d, %+v", port, got)
			}
		})
	}
}

func TestGoneDeviceFreesItsPort(t *testing.T) {
	must.NotLeak(t)
	c, events := newController(t, &User{})
	for range 3 {
		plug, stop := export(t, newScanner(t, 0))
		_, err := c.Attach(t.Context(), 0, plug)
		must.OK(t, err)
		wantEvent(t, events, Attached, 0)
		stop()
		e := wantEvent(t, events, Detached, 0)
		if e.Err == nil || e.Port.From.BusID != "1-4" || e.Port.SerialNumber != "0001" {
			t.Errorf("event %+v", e)
		}
		wantStatus(t, c, idle(2))
	}
}

func TestBadAttachIsRefusedUntouched(t *testing.T) {
	must.NotLeak(t)
	c, _ := newController(t, driverFunc(func(context.Context, Plug) (Attachment, error) {
		panic("the driver was called")
	}))
	conn, peer := must.Connect(t)
	for name, tt := range map[string]struct {
		port int
		plug Plug
	}{
		"negative port":  {-1, Plug{Conn: conn, Speed: usb.SpeedFull}},
		"port too high":  {4, Plug{Conn: conn, Speed: usb.SpeedFull}},
		"unknown speed":  {0, Plug{Conn: conn}},
		"speed too high": {0, Plug{Conn: conn, Speed: 7}},
		"nothing":        {0, Plug{Speed: usb.SpeedFull}},
		"both":           {0, Plug{Conn: conn, Device: newScanner(t, 0)}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.Attach(t.Context(), tt.port, tt.plug)
			wantErrno(t, err, syscall.EINVAL)
			wantStatus(t, c, idle(2))
		})
	}
	if _, err := peer.Write([]byte{7}); err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := conn.Read(b[:]); err != nil || b[0] != 7 {
		t.Errorf("the connection is not the caller's: %v", err)
	}
}

func TestDetachOfWhatIsNotThere(t *testing.T) {
	c, _ := newController(t, &User{})
	for _, port := range []int{-1, 0, 3, 4} {
		wantErrno(t, c.Detach(port), syscall.EINVAL)
	}
}

func TestPortInUse(t *testing.T) {
	must.NotLeak(t)
	c, _ := newController(t, &User{})
	_, err := c.Attach(t.Context(), 0, Plug{Device: newScanner(t, 0)})
	must.OK(t, err)
	before := string(c.AppendStatus(nil))
	other := newScanner(t, 0)
	for _, port := range []int{0, 2} { // 2 lands on 0
		_, err = c.Attach(t.Context(), port, Plug{Device: other})
		wantErrno(t, err, syscall.EBUSY)
	}
	wantStatus(t, c, before)
	_, err = c.Attach(t.Context(), 1, Plug{Device: other})
	must.OK(t, err)
}

// startAttach returns when the driver waits for the end of its context.
func startAttach(t *testing.T, ctx context.Context) (*Controller, <-chan error) {
	t.Helper()
	entered := make(chan struct{})
	c, _ := newController(t, driverFunc(func(ctx context.Context, _ Plug) (Attachment, error) {
		close(entered)
		<-ctx.Done()
		return nil, syscall.EBUSY
	}))
	conn, _ := must.Connect(t)
	result := make(chan error, 1)
	go func() {
		_, err := c.Attach(ctx, 0, Plug{Conn: conn, Speed: usb.SpeedFull})
		result <- err
	}()
	<-entered
	return c, result
}

func TestOneAttachAtATime(t *testing.T) {
	must.NotLeak(t)
	ctx, cancel := context.WithCancel(t.Context())
	c, result := startAttach(t, ctx)
	wantStatus(t, c, strings.Replace(idle(2), "0000 004", "0000 005", 1))
	if c.Device(0) != nil {
		t.Error("there is a device already")
	}
	for _, port := range []int{0, 1} {
		_, err := c.Attach(t.Context(), port, Plug{Device: newScanner(t, 0)})
		wantErrno(t, err, syscall.EAGAIN)
	}
	cancel()
	wantErrno(t, <-result, syscall.ECANCELED)
	wantStatus(t, c, idle(2))
}

func TestCauseOfTheEndOfAnAttach(t *testing.T) {
	must.NotLeak(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	c, result := startAttach(t, ctx)
	cause := errors.New("the user left")
	cancel(cause)
	err := <-result
	wantErrno(t, err, syscall.ECANCELED)
	if !errors.Is(err, cause) || err.Error() != "attach "+c.String()+" port 0: the user left" {
		t.Errorf("error %q", err)
	}
}

func TestDetachEndsAnAttach(t *testing.T) {
	must.NotLeak(t)
	c, result := startAttach(t, t.Context())
	must.OK(t, c.Detach(0))
	wantErrno(t, <-result, syscall.ECANCELED)
	wantStatus(t, c, idle(2))
}

func TestDeleteEndsAnAttach(t *testing.T) {
	must.NotLeak(t)
	c, result := startAttach(t, t.Context())
	c.stop(errClosed)
	wantErrno(t, <-result, syscall.ENODEV)
	_, err := c.Attach(t.Context(), 0, Plug{Device: newScanner(t, 0)})
	wantErrno(t, err, syscall.ENODEV)
}

func TestDriversErrors(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want syscall.Errno
	}{
		{syscall.EBUSY, syscall.EIO},
		{syscall.EAGAIN, syscall.EIO},
		{syscall.EINVAL, syscall.EIO},
		{errors.New("no idea"), syscall.EIO},
		{fmt.Errorf("lease: %w", syscall.ENOSPC), syscall.ENOSPC},
		{&net.OpError{Op: "read", Err: syscall.ECONNRESET}, syscall.ECONNRESET},
		{fmt.Errorf("%w: %w", ErrRefused, syscall.EBUSY), syscall.EACCES},
		{&usb.DescriptorError{}, syscall.EPROTO},
		{usb.StatusStall.Err(), syscall.EPROTO},
		{usbip.ErrProtocol, syscall.EPROTO},
		{context.DeadlineExceeded, syscall.ETIMEDOUT},
	} {
		c, _ := newController(t, driverFunc(func(context.Context, Plug) (Attachment, error) { return nil, tt.err }))
		_, err := c.Attach(t.Context(), 0, Plug{Device: newScanner(t, 0)})
		wantErrno(t, err, tt.want)
		if !errors.Is(err, tt.err) {
			t.Errorf("%v does not wrap %v", err, tt.err)
		}
		wantStatus(t, c, idle(2))
	}
}

func TestSilentPeer(t *testing.T) {
	must.NotLeak(t)
	plug := func() Plug {
		conn, _ := must.Connect(t)
		return Plug{Conn: conn, Speed: usb.SpeedFull}
	}
	t.Run("deadline of the caller", func(t *testing.T) {
		c, _ := newController(t, &User{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err := c.Attach(ctx, 0, plug())
		wantErrno(t, err, syscall.ETIMEDOUT)
		wantStatus(t, c, idle(2))
	})
	t.Run("timeout of the driver", func(t *testing.T) {
		c, _ := newController(t, &User{Timeout: time.Millisecond})
		_, err := c.Attach(t.Context(), 0, plug())
		wantErrno(t, err, syscall.ETIMEDOUT)
		wantStatus(t, c, idle(2))
	})
}

// The peer describes the device and then answers nothing more, cancellations
// included.
func TestPeerSilentAfterItsDescriptors(t *testing.T) {
	must.NotLeak(t)
	c, _ := newController(t, &User{
		Timeout: time.Hour,
		Import:  usbip.ImportOptions{UnlinkTimeout: time.Hour},
	})
	conn, peer := must.Connect(t)
	d := newScanner(t, 0).Descriptors()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		answer(peer, d.Answer)
		cancel()
	}()
	_, err := c.Attach(ctx, 0, Plug{Conn: conn, Speed: usb.SpeedFull})
	wantErrno(t, err, syscall.ECANCELED)
	wantStatus(t, c, idle(2))
	<-done
}

func TestBadPeer(t *testing.T) {
	must.NotLeak(t)
	for name, tt := range map[string]struct {
		peer func(net.Conn)
		want syscall.Errno
	}{
		"no USB/IP":       {func(p net.Conn) { p.Write(make([]byte, usbip.HeaderSize)) }, syscall.EPROTO},
		"bad descriptors": {func(p net.Conn) { answer(p, func(usb.Setup) ([]byte, bool) { return []byte{18, 2, 0, 0}, true }) }, syscall.EPROTO},
		"closed":          {func(p net.Conn) { p.(*net.TCPConn).CloseWrite() }, syscall.EIO},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := newController(t, &User{})
			conn, peer := must.Connect(t)
			done := make(chan struct{})
			go func() { defer close(done); tt.peer(peer) }()
			_, err := c.Attach(t.Context(), 0, Plug{Conn: conn, Speed: usb.SpeedFull})
			wantErrno(t, err, tt.want)
			wantStatus(t, c, idle(2))
			<-done
			plug, _ := export(t, newScanner(t, 0))
			_, err = c.Attach(t.Context(), 0, plug)
			must.OK(t, err)
		})
	}
}

func TestReady(t *testing.T) {
	must.NotLeak(t)
	c, events := newController(t, &User{})
	plug, _ := export(t, newScanner(t, 0))
	no := errors.New("keyboards are not allowed")
	var seen usb.Device
	plug.Ready = func(a Attachment) error {
		seen = a.Device()
		return no
	}
	_, err := c.Attach(t.Context(), 0, plug)
	wantErrno(t, err, syscall.EACCES)
	if !errors.Is(err, no) || !errors.Is(err, ErrRefused) {
		t.Errorf("error %v", err)
	}
	<-seen.Gone()
	wantStatus(t, c, idle(2))

	plug, _ = export(t, newScanner(t, 0))
	plug.Ready = func(Attachment) error {
		wantStatus(t, c, strings.Replace(idle(2), "0000 004", "0000 005", 1))
		return nil
	}
	_, err = c.Attach(t.Context(), 0, plug)
	must.OK(t, err)
	wantEvent(t, events, Attached, 0)
}

// A device that was handed over as such is still the caller's after a failure.
func TestRefusedDeviceStaysOpen(t *testing.T) {
	must.NotLeak(t)
	c, _ := newController(t, &User{})
	s := newScanner(t, 0)
	_, err := c.Attach(t.Context(), 0, Plug{Device: s, Ready: func(Attachment) error { return errors.New("no") }})
	wantErrno(t, err, syscall.EACCES)
	_, err = c.Attach(t.Context(), 0, Plug{Device: s})
	must.OK(t, err)
}

// The port is attached again as soon as it is free, told or not.
func TestEventsAreInOrder(t *testing.T) {
	must.NotLeak(t)
	var kinds []EventKind
	table := &Table{OnEvent: func(e Event) {
		e.Controller.AppendStatus(nil)
		runtime.Gosched()
		kinds = append(kinds, e.Kind)
	}}
	made, err := table.Create(Config{Driver: &User{}, Policy: policy.Open()}, 1)
	must.OK(t, err)
	const rounds = 200
	for range rounds {
		s := newScanner(t, 0)
		for {
			_, err := made[0].Attach(t.Context(), 0, Plug{Device: s})
			if err == nil {
				break
			}
			wantErrno(t, err, syscall.EBUSY)
			runtime.Gosched()
		}
		must.OK(t, made[0].Detach(0))
	}
	table.Close()
	if len(kinds) != 2*rounds {
		t.Fatalf("%d events for %d rounds", len(kinds), rounds)
	}
	for i, kind := range kinds {
		if want := [2]EventKind{Attached, Detached}[i%2]; kind != want {
			t.Fatalf("event %d is %d", i, kind)
		}
	}
}

func TestTwoControllersAtOnce(t *testing.T) {
	must.NotLeak(t)
	var wg sync.WaitGroup
	for range 2 {
		c, events := newController(t, &User{})
		scanner := newScanner(t, 0)
		wg.Go(func() {
			for i := range 100 {
				plug, stop := export(t, scanner)
				if _, err := c.Attach(t.Context(), 0, plug); err != nil {
					t.Error(err)
					return
				}
				<-events
				c.AppendStatus(nil)
				if i%2 == 0 {
					if err := c.Detach(0); err != nil {
						t.Error(err)
					}
				}
				stop()
				<-events
			}
		})
	}
	wg.Wait()
}
