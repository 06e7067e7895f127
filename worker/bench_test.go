//go:build linux

package worker_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
)

// BenchmarkThroughWorker sets a device that is served by a worker beside one whose
// connection was handed over, in turns; "of-limit" is the time of the latter
// divided by that of the former. The exporter is a process of its own in both
// cases.
func BenchmarkThroughWorker(b *testing.B) {
	bulk := usb.URB{Type: usb.Bulk, Endpoint: 0x81, Flags: usb.FlagDirIn, Buffer: make([]byte, 64<<10)}
	bulkOut := usb.URB{Type: usb.Bulk, Endpoint: 0x01, Buffer: make([]byte, 64<<10)}
	status := usb.Setup{RequestType: usb.DirIn, Request: usb.ReqGetStatus, Length: 2}
	control := usb.URB{Type: usb.Control, Endpoint: usb.DirIn, Setup: status, Buffer: make([]byte, 2)}
	interrupt := usb.URB{Type: usb.Bulk, Endpoint: 0x81, Flags: usb.FlagDirIn, Buffer: make([]byte, 8)}
	for _, load := range []struct {
		name     string
		urb      usb.URB
		inFlight int
	}{
		{"control,1-in-flight", control, 1},
		{"small-in,1-in-flight", interrupt, 1},
		{"small-in,32-in-flight", interrupt, 32},
		{"bulk-in", bulk, 4},
		{"bulk-out", bulkOut, 4},
	} {
		b.Run(load.name, func(b *testing.B) {
			if load.urb.Type == usb.Bulk {
				b.SetBytes(int64(len(load.urb.Buffer)))
			}
			c := start(b, socketPath(b))
			d, desc := importDevice(b, c, dialExporter(b))
			opts := &usbip.ImportOptions{Descriptors: desc}
			through := newPump(b, serve(b, d), opts, load.urb, load.inFlight)
			direct := newPump(b, dialExporter(b), opts, load.urb, load.inFlight)
			compare(b, through, direct)
		})
	}
}

func compare(b *testing.B, ours, other *pump) {
	const turns = 16
	ours.run(b, 64)
	other.run(b, 64)
	var t [2]time.Duration
	b.ReportAllocs()
	b.ResetTimer()
	for turn := range turns {
		n := b.N*(turn+1)/turns - b.N*turn/turns
		if n == 0 {
			continue
		}
		start := time.Now()
		ours.run(b, n)
		t[0] += time.Since(start)
		b.StopTimer()
		start = time.Now()
		other.run(b, n)
		t[1] += time.Since(start)
		b.StartTimer()
	}
	b.StopTimer()
	b.ReportMetric(float64(t[1])/float64(t[0]), "of-limit")
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
	must(b, err)
	b.Cleanup(func() { dev.Close() })
	_, err = usb.ControlTransfer(b.Context(), dev, usb.SetConfiguration(1), nil)
	must(b, err)
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

func (p *pump) run(b *testing.B, n int) {
	first := min(n, len(p.urbs))
	p.end, p.left = n, n-first
	for _, u := range p.urbs[:first] {
		must(b, p.dev.Submit(u))
	}
	<-p.done
}

// exporterEnv makes this program an exporter.
const exporterEnv = "USBNS_TEST_EXPORTER"

// dialExporter starts an exporter and connects to it.
func dialExporter(b *testing.B) *net.TCPConn {
	b.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), exporterEnv+"=1")
	out, err := cmd.StdoutPipe()
	must(b, err)
	must(b, cmd.Start())
	b.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	addr, err := bufio.NewReader(out).ReadString('\n')
	must(b, err)
	conn, err := net.Dial("tcp", addr[:len(addr)-1])
	must(b, err)
	b.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

// runExporter serves one connection with a device that moves all data at once.
func runExporter() int {
	inner, err := emulate.NewLoopback(emulate.Options{})
	if err != nil {
		return 1
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 1
	}
	fmt.Println(l.Addr())
	conn, err := l.Accept()
	if err != nil {
		return 1
	}
	_ = usbip.ServeDevice(context.Background(), conn, devid, atOnce{inner}, nil)
	return 0
}

type atOnce struct{ usb.Device }

func (d atOnce) Submit(u *usb.URB) error {
	if u.Type == usb.Control {
		return d.Device.Submit(u)
	}
	u.Status, u.Actual = usb.StatusOK, len(u.Buffer)
	u.Complete(u)
	return nil
}
