//go:build linux

package worker_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/internal/benchtable"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
)

// A load is transfers that are kept in flight at an exporter.
type load struct {
	name     string
	urb      usb.URB
	inFlight int
	exporter string
}

// loads returns those of which the device has to be asked, of an exporter.
func loads(exporter string) []load {
	in := usb.URB{Type: usb.Bulk, Endpoint: 0x81, Flags: usb.FlagDirIn, Buffer: make([]byte, 64<<10)}
	out := usb.URB{Type: usb.Bulk, Endpoint: 0x01, Buffer: in.Buffer}
	return []load{
		{"control-1", controlIn(usb.Setup{RequestType: vendorIn}), 1, exporter},
		{"control-32", controlIn(usb.Setup{RequestType: vendorIn}), 32, exporter},
		{"bulk-in", in, 4, exporter},
		{"bulk-out", out, 4, exporter},
	}
}

// controlIn reads 18 bytes, as many as a device descriptor has.
func controlIn(s usb.Setup) usb.URB {
	s.Length = 18
	return usb.URB{Endpoint: usb.DirIn, Setup: s, Flags: usb.FlagDirIn, Buffer: make([]byte, 18)}
}

// vendorIn is the type of a request to a device that only its vendor knows.
const vendorIn = 0xc0

// BenchmarkThroughWorker sets a device that is served by a worker beside one whose
// connection was handed over. The worker is on the CPU of the one that stands for
// the kernel. With a device that takes no time nothing hides what a process on the
// way costs; a device of high speed does.
func BenchmarkThroughWorker(b *testing.B) {
	benchtable.Pin(b)
	for _, exporter := range []string{"atOnce", "highspeed"} {
		for _, l := range loads(exporter) {
			b.Run(exporter+"/"+l.name, func(b *testing.B) { besideWorker(b, l, benchtable.Server(b, exporter)) })
		}
	}
}

// BenchmarkDescriptor does the same with what a worker answers by itself.
func BenchmarkDescriptor(b *testing.B) {
	benchtable.Pin(b)
	urb := controlIn(usb.GetDescriptor(usb.DescDevice, 0, 0, 18))
	for _, l := range []load{{"control-1", urb, 1, "atOnce"}, {"control-32", urb, 32, "atOnce"}} {
		b.Run(l.name, func(b *testing.B) { besideWorker(b, l, benchtable.Server(b, l.exporter)) })
	}
}

// BenchmarkBesideRelay has a process on the way in either case: the worker, and
// one that copies bytes and does not know what they are.
func BenchmarkBesideRelay(b *testing.B) {
	benchtable.Pin(b)
	for _, l := range loads("atOnce") {
		b.Run(l.name, func(b *testing.B) { besideWorker(b, l, startRelay(b, benchtable.Server(b, l.exporter))) })
	}
}

// besideWorker compares a load through a worker with the same on a connection that
// goes another way.
func besideWorker(b *testing.B, l load, other net.Conn) {
	b.SetBytes(int64(len(l.urb.Buffer)))
	c := start(b, socketPath(b))
	conn := benchtable.Server(b, l.exporter)
	d, desc := importDevice(b, c, conn.(*net.TCPConn))
	conn.Close()
	opts := &usbip.ImportOptions{Descriptors: desc}
	through := newPump(b, serve(b, d), opts, l.urb, l.inFlight)
	limit := newPump(b, other, opts, l.urb, l.inFlight)
	benchtable.Compare(b, 0.80, through.run, limit.run)
}

// A pump keeps transfers in flight at an importer, which stands for the kernel.
type pump struct {
	dev       usb.Device
	urbs      []*usb.URB
	left, end int // completions come from one goroutine
	done      chan struct{}
}

func newPump(b *testing.B, conn net.Conn, opts *usbip.ImportOptions, urb usb.URB, inFlight int) *pump {
	dev, err := usbip.NewImporter(b.Context(), conn, devid, usb.SpeedHigh, opts)
	must.OK(b, err)
	b.Cleanup(func() { dev.Close() })
	_, err = usb.ControlTransfer(b.Context(), dev, usb.SetConfiguration(1), nil)
	must.OK(b, err)
	p := &pump{dev: dev, done: make(chan struct{}, 1)}
	for range inFlight {
		u := urb
		u.Buffer = slices.Clone(urb.Buffer)
		u.Complete = p.complete
		p.urbs = append(p.urbs, &u)
	}
	return p
}

func (p *pump) complete(u *usb.URB) {
	if u.Status != usb.StatusOK || u.Actual != len(u.Buffer) {
		panic(fmt.Sprint(u.Status, u.Actual))
	}
	if p.end--; p.end == 0 {
		p.done <- struct{}{}
	}
	if p.left > 0 {
		p.left--
		if err := p.dev.Submit(u); err != nil {
			panic(err)
		}
	}
}

func (p *pump) run(n int) {
	first := min(n, len(p.urbs))
	p.end, p.left = n, n-first
	for _, u := range p.urbs[:first] {
		if err := p.dev.Submit(u); err != nil {
			panic(err)
		}
	}
	<-p.done
}

// exporters are the other ends.
var exporters = map[string]benchtable.Serve{
	"atOnce":    func(conn net.Conn) error { return serveTimed(conn, 0, 0) },
	"highspeed": func(conn net.Conn) error { return serveTimed(conn, 125*time.Microsecond, 53_248_000) },
}

// serveTimed serves a device that moves all data without looking at it: so many
// bytes a second, 13 packets of 512 bytes in each microframe at high speed, and
// none for some time at first; at once if rate is 0.
func serveTimed(conn net.Conn, latency time.Duration, rate int) error {
	inner, err := emulate.NewLoopback(emulate.Options{})
	if err != nil {
		return err
	}
	d := &timed{Device: inner, latency: latency, rate: rate, queue: make(chan *usb.URB, usbip.DefaultURBs)}
	if rate > 0 {
		go d.work()
	}
	return usbip.ServeDevice(context.Background(), conn, devid, d, nil)
}

type timed struct {
	usb.Device
	latency time.Duration
	rate    int
	queue   chan *usb.URB
}

func (d *timed) Submit(u *usb.URB) error {
	switch {
	case u.Type == usb.Control && u.Setup.RequestType != vendorIn:
		return d.Device.Submit(u)
	case d.rate == 0:
		d.complete(u)
	default:
		d.queue <- u
	}
	return nil
}

func (d *timed) complete(u *usb.URB) {
	u.Status, u.Actual = usb.StatusOK, len(u.Buffer)
	u.Complete(u)
}

// work is late now and then, and makes up for it.
func (d *timed) work() {
	var free time.Time // when the bus has done the last
	for u := range d.queue {
		if now := time.Now(); free.Before(now.Add(-time.Millisecond)) {
			free = now
		}
		free = free.Add(max(d.latency, time.Duration(len(u.Buffer))*time.Second/time.Duration(d.rate)))
		time.Sleep(time.Until(free))
		d.complete(u)
	}
}
