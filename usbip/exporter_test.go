package usbip

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
)

func dial(t testing.TB, addr string) net.Conn {
	t.Helper()
	conn, err := Dial(t.Context(), addr)
	must.OK(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

func list(t testing.TB, addr string) string {
	t.Helper()
	devices, err := List(t.Context(), dial(t, addr))
	must.OK(t, err)
	var ids []string
	for _, d := range devices {
		ids = append(ids, d.BusID)
	}
	return strings.Join(ids, " ")
}

// events collects what an Exporter tells.
type events struct{ c chan Event }

func newEvents() *events { return &events{make(chan Event, 64)} }

func (e *events) next(t testing.TB, kind EventKind, busid string) Event {
	t.Helper()
	ev := <-e.c
	if ev.Kind != kind || ev.BusID != busid {
		t.Errorf("event %+v, want kind %d of %q", ev, kind, busid)
	}
	return ev
}

func TestExporterOffersWhatIsFree(t *testing.T) {
	must.NotLeak(t)
	ev := newEvents()
	e := &Exporter{OnEvent: func(e Event) { ev.c <- e }}
	one, two := newFakeDevice(), newFakeDevice()
	must.OK(t, e.Add("1-1", one))
	must.OK(t, e.Add("1-2", two))
	addr := startExporter(t, e)
	if got := list(t, addr); got != "1-1 1-2" {
		t.Errorf("listed %q", got)
	}
	i := importFrom(t, addr, "1-1", nil)
	ev.next(t, Imported, "1-1")
	if got := list(t, addr); got != "1-2" {
		t.Errorf("with 1-1 in use, listed %q", got)
	}
	_, err := RequestImport(t.Context(), dial(t, addr), "1-1")
	must.Is(t, err, OpBusy)
	must.Is(t, ev.next(t, Refused, "1-1").Err, OpBusy)
	_, err = RequestImport(t.Context(), dial(t, addr), "1-3")
	must.Is(t, err, OpNoDevice)
	ev.next(t, Refused, "1-3")

	must.OK(t, i.Close())
	ev.next(t, Released, "1-1")
	if one.resetCount() != 1 {
		t.Errorf("%d resets after the import", one.resetCount())
	}
	if got := list(t, addr); got != "1-1 1-2" {
		t.Errorf("after the import, listed %q", got)
	}
	two.Close()
	if got := list(t, addr); got != "1-1" {
		t.Errorf("with 1-2 gone, listed %q", got)
	}
	importFrom(t, addr, "1-1", nil)
	ev.next(t, Imported, "1-1")
}

func TestExporterInfo(t *testing.T) {
	e := &Exporter{}
	for _, id := range []string{"1-1", "1-2"} {
		must.OK(t, e.Add(id, newFakeDevice()))
	}
	addr := startExporter(t, e)
	devices, err := List(t.Context(), dial(t, addr))
	must.OK(t, err)
	d := devices[0]
	if d.Vendor != 0x1234 || d.Product != 0x5678 || d.Speed != usb.SpeedHigh || d.NumConfigurations != 1 || d.Configuration != 1 ||
		len(d.Interfaces) != 1 || d.Interfaces[0].Class != 0xff {
		t.Errorf("device %+v", d)
	}
	if a, b := d.DevID(), devices[1].DevID(); a == b || a == 0 || b == 0 {
		t.Errorf("devids %#x and %#x", a, b)
	}
}

func TestExporterAddRemove(t *testing.T) {
	must.NotLeak(t)
	e := &Exporter{}
	dev := newFakeDevice()
	must.OK(t, e.Add("1-1", dev))
	if e.Add("1-1", newFakeDevice()) == nil {
		t.Error("a busid was added twice")
	}
	if e.Add("a/b", newFakeDevice()) == nil {
		t.Error("a bad busid was added")
	}
	addr := startExporter(t, e)
	i := importFrom(t, addr, "1-1", nil)
	configure(t, i)
	u := usb.URB{Type: usb.Interrupt, Endpoint: intrIn, Buffer: make([]byte, 8)}
	done := make(chan struct{})
	u.Complete = func(*usb.URB) { close(done) }
	must.OK(t, i.Submit(&u))
	<-dev.arrived
	must.OK(t, e.Remove(t.Context(), "1-1"))
	if dev.resetCount() != 1 || len(dev.waiting) != 0 {
		t.Error("Remove returned with the device in use")
	}
	<-i.Gone()
	<-done
	if e.Remove(t.Context(), "1-1") == nil {
		t.Error("a device was removed twice")
	}
	must.OK(t, e.Add("1-1", dev))
	importFrom(t, addr, "1-1", nil)
}

// TestExporterResetFailed shows that a device no importer could find as new is
// not handed out, until it can be reset.
func TestExporterResetFailed(t *testing.T) {
	must.NotLeak(t)
	ev := newEvents()
	e := &Exporter{OnEvent: func(e Event) { ev.c <- e }}
	dev := newFakeDevice()
	broken := true
	dev.reset = func(context.Context) error {
		if broken {
			return errors.New("no")
		}
		return nil
	}
	must.OK(t, e.Add("1-1", dev))
	addr := startExporter(t, e)
	importFrom(t, addr, "1-1", nil).Close()
	ev.next(t, Imported, "1-1")
	if err := ev.next(t, Released, "1-1").Err; !isResetError(err) {
		t.Errorf("released with %v", err)
	}
	_, err := RequestImport(t.Context(), dial(t, addr), "1-1")
	must.Is(t, err, OpDevError)
	ev.next(t, Refused, "1-1")
	dev.mu.Lock()
	broken = false
	dev.mu.Unlock()
	importFrom(t, addr, "1-1", nil)
}

// TestExporterHandshakes lists requests that get no device.
func TestExporterHandshakes(t *testing.T) {
	importing := func(busid string) []byte {
		return append(OpHeader{Version, OpReqImport, OpOK}.Append(nil), busid...)
	}
	pad := func(s string) string { return s + strings.Repeat("\x00", BusIDSize-len(s)) }
	tests := map[string]struct {
		request []byte
		answer  OpStatus // OpOK: none
		busid   string   // as reported
		want    error
	}{
		"nothing":              {nil, OpOK, "", io.EOF},
		"partial header":       {importing("")[:7], OpOK, "", io.ErrUnexpectedEOF},
		"partial busid":        {importing("1-1"), OpOK, "", io.ErrUnexpectedEOF},
		"wrong version":        {OpHeader{0x0106, OpReqDevlist, OpOK}.Append(nil), OpOK, "", ErrProtocol},
		"wrong code":           {OpHeader{Version, 0x8099, OpOK}.Append(nil), OpOK, "", ErrProtocol},
		"a reply":              {OpHeader{Version, OpRepImport, OpOK}.Append(nil), OpOK, "", ErrProtocol},
		"text":                 {[]byte("GET / HTTP/1.1\r\n\r\n"), OpOK, "", ErrProtocol},
		"a URB":                {submitPDU(1, 0, usb.Setup{}, nil, 0), OpOK, "", ErrProtocol},
		"unknown busid":        {importing(pad("9-9")), OpNoDevice, "9-9", OpNoDevice},
		"empty busid":          {importing(pad("")), OpNoDevice, "", OpNoDevice},
		"unterminated busid":   {importing(strings.Repeat("1", BusIDSize)), OpNoDevice, "", OpNoDevice},
		"busid with newline":   {importing(pad("1-1\n")), OpNoDevice, "", OpNoDevice},
		"busid with slashes":   {importing(pad("../1-1")), OpNoDevice, "", OpNoDevice},
		"busid with an escape": {importing(pad("\x1b[2J")), OpNoDevice, "", OpNoDevice},
	}
	must.NotLeak(t)
	ev := newEvents()
	e := &Exporter{OnEvent: func(e Event) { ev.c <- e }}
	must.OK(t, e.Add("1-1", newFakeDevice()))
	addr := startExporter(t, e)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, addr).(*net.TCPConn)
			_, err := conn.Write(tt.request)
			must.OK(t, err)
			conn.CloseWrite() // fails where the answer was to close
			reply, _ := io.ReadAll(conn)
			if tt.answer == OpOK {
				if len(reply) != 0 {
					t.Errorf("answer %x", reply)
				}
			} else if len(reply) != OpHeaderSize || ParseOpHeader(reply) != (OpHeader{Version, OpRepImport, tt.answer}) {
				t.Errorf("answer %x", reply)
			}
			must.Is(t, ev.next(t, Refused, tt.busid).Err, tt.want)
		})
	}
	if got := list(t, addr); got != "1-1" {
		t.Errorf("after that, listed %q", got)
	}
}

// A pipeListener hands out the ends of pipes.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return nil }

func (l *pipeListener) dial() net.Conn {
	ours, theirs := net.Pipe()
	l.conns <- theirs
	return ours
}

// inBubble runs f with an Exporter of one device that serves pipes, in a time
// of their own.
func inBubble(t *testing.T, e *Exporter, f func(*testing.T, *pipeListener, chan Event)) {
	synctest.Test(t, func(t *testing.T) {
		ev := newEvents()
		e.OnEvent = func(e Event) { ev.c <- e }
		must.OK(t, e.Add("1-1", newFakeDevice()))
		l := newPipeListener()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- e.Serve(ctx, l) }()
		f(t, l, ev.c)
		cancel()
		must.Is(t, <-done, context.Canceled)
	})
}

func TestExporterHandshakeTimeout(t *testing.T) {
	peers := map[string]func(net.Conn){
		"silent": func(net.Conn) {},
		"one byte a second": func(c net.Conn) {
			for range 60 {
				if _, err := c.Write([]byte{0}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		},
		"does not read its list": func(c net.Conn) { c.Write(OpHeader{Version, OpReqDevlist, OpOK}.Append(nil)) },
	}
	for name, behave := range peers {
		t.Run(name, func(t *testing.T) {
			inBubble(t, &Exporter{HandshakeTimeout: 7 * time.Second}, func(t *testing.T, l *pipeListener, ended chan Event) {
				conn := l.dial()
				defer conn.Close()
				start := time.Now()
				var behaved sync.WaitGroup
				behaved.Go(func() { behave(conn) })
				ev := <-ended
				d := time.Since(start)
				behaved.Wait()
				if d > 7*time.Second || ev.Kind != Refused {
					t.Errorf("ended after %v with %+v", d, ev)
				}
				if name == "silent" {
					must.Is(t, ev.Err, errNoRequest)
				}
			})
		})
	}
}

// TestExporterHandshakeFlood shows that connections without a request do not
// keep others out.
func TestExporterHandshakeFlood(t *testing.T) {
	inBubble(t, &Exporter{Handshakes: 4}, func(t *testing.T, l *pipeListener, ended chan Event) {
		start := time.Now()
		var silent []net.Conn
		for range 20 {
			silent = append(silent, l.dial())
		}
		conn := l.dial()
		devices, err := List(t.Context(), conn)
		if must.OK(t, err); len(devices) != 1 {
			t.Errorf("listed %v", devices)
		}
		for i, c := range silent[:16] {
			if _, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("connection %d: %v", i, err)
			}
			must.Is(t, (<-ended).Err, errCrowded)
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("only after %v", d)
		}
		for _, c := range append(silent, conn) {
			c.Close()
		}
	})
}

// TestExporterLimited shows that the first transfer beyond a limit is told, and
// no other.
func TestExporterLimited(t *testing.T) {
	must.NotLeak(t)
	ev := newEvents()
	e := &Exporter{ServeOptions: *hostileLimits, OnEvent: func(e Event) { ev.c <- e }}
	must.OK(t, e.Add("1-1", newFakeDevice()))
	i := importFrom(t, startExporter(t, e), "1-1", nil)
	configure(t, i)
	for range 3 {
		u := bulkInURB(hostileLimits.Limits.Bytes)
		must.Is(t, usb.Do(t.Context(), i, &u), usb.StatusNoMemory.Err())
	}
	i.Close()
	ev.next(t, Imported, "1-1")
	ev.next(t, Limited, "1-1")
	ev.next(t, Released, "1-1")
}

// TestExporterBusyUntilReset imports a device whose last importer has left,
// while it is still being reset.
func TestExporterBusyUntilReset(t *testing.T) {
	must.NotLeak(t)
	e := &Exporter{}
	dev := newFakeDevice()
	started, goOn := make(chan struct{}), make(chan struct{})
	dev.reset = func(context.Context) error {
		close(started)
		<-goOn
		return nil
	}
	must.OK(t, e.Add("1-1", dev))
	addr := startExporter(t, e)
	must.OK(t, importFrom(t, addr, "1-1", nil).Close())
	<-started
	_, err := RequestImport(t.Context(), dial(t, addr), "1-1")
	must.Is(t, err, OpBusy)
	close(goOn)
	dev.mu.Lock() // the reset is over
	dev.reset = nil
	dev.mu.Unlock()
	must.OK(t, e.Remove(t.Context(), "1-1"))
	must.OK(t, e.Add("1-1", dev))
	importFrom(t, addr, "1-1", nil)
}

// TestExporterServeEnds shows that importers lose their device when Serve is
// told to end.
func TestExporterServeEnds(t *testing.T) {
	must.NotLeak(t)
	e := &Exporter{}
	must.OK(t, e.Add("1-1", newFakeDevice()))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.OK(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- e.Serve(ctx, l) }()
	i := importFrom(t, l.Addr().String(), "1-1", nil)
	cancel()
	must.Is(t, <-done, context.Canceled)
	<-i.Gone()
}

// A lateListener accepts nothing more before its Close has returned.
type lateListener struct {
	*pipeListener
	let chan struct{}
}

func (l lateListener) Close() error {
	l.pipeListener.Close()
	<-l.let
	return nil
}

// TestExporterServeClosesItsListener matters to who takes the same port next.
func TestExporterServeClosesItsListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := lateListener{newPipeListener(), make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- new(Exporter).Serve(ctx, l) }()
		cancel()
		synctest.Wait()
		if len(done) != 0 {
			t.Error("Serve returned before its listener was closed")
		}
		close(l.let)
		must.Is(t, <-done, context.Canceled)
	})
}

func TestExporterListenerFails(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.OK(t, err)
	l.Close()
	must.Is(t, new(Exporter).Serve(t.Context(), l), net.ErrClosed)
}

// TestExporterManyImports makes rounds from several sides at once: one has the
// device, the others hear that it is busy, nobody waits.
func TestExporterManyImports(t *testing.T) {
	must.NotLeak(t)
	e := &Exporter{}
	must.OK(t, e.Add("1-1", newFakeDevice()))
	addr := startExporter(t, e)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for imported := 0; imported < 5; {
				conn, err := Dial(t.Context(), addr)
				if err != nil {
					t.Error(err)
					return
				}
				i, err := Import(t.Context(), conn, "1-1", nil)
				if errors.Is(err, OpBusy) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				imported++
				i.Close()
			}
		})
	}
	all.Wait()
}
